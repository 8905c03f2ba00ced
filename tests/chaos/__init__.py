"""Campaigns against a running server: what it must withstand, seeded and repeatable. ``make chaos`` runs them whole."""
