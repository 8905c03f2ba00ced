"""The backends that come with Headrace; each folder is one."""
