"""Credit-default risk: a LightGBM model next to a scikit-learn pipeline, both answered by Headrace.

    python examples/credit/run.py

The data is ISLP's Default.csv: 10,000 customers, 333 of whom defaulted. Needs islp (for the file only), lightgbm,
scikit-learn, pandas and skl2onnx to train and import; running the saved models needs none of them.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "build" / "models"
PARITY_MAX = 1e-6
SEED = 7
ROWS_ALONE = 50


@dataclass(frozen=True)
class Customers:
    """Rows of the data set.

    Attributes:
        student: object array ``[rows]`` of ``"Yes"`` and ``"No"``.
        numbers: float32 ``[rows, 2]``: balance and income in dollars.
        defaulted: int64 ``[rows]``: 1 for a customer who did not pay.
    """

    student: np.ndarray
    numbers: np.ndarray
    defaulted: np.ndarray

    def features(self) -> np.ndarray:
        """float32 ``[rows, 3]`` for the tree model: student as 0 or 1, balance, income."""
        return np.column_stack([(self.student == "Yes").astype(np.float32), self.numbers])

    def take(self, rows: np.ndarray) -> Customers:
        """The given rows."""
        return Customers(self.student[rows], self.numbers[rows], self.defaulted[rows])


def customers() -> Customers:
    """Reads Default.csv out of the installed islp, which is not imported: it would want its own dependencies."""
    spec = importlib.util.find_spec("ISLP")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package islp is not installed: pip install --no-deps islp")
    lines = (Path(spec.submodule_search_locations[0]) / "data" / "Default.csv").read_text(encoding="utf-8").split()
    header, *rows = (line.split(",") for line in lines)
    if header != ["default", "student", "balance", "income"]:
        raise ValueError(f"Default.csv: got columns {header}, expected default, student, balance, income")
    return Customers(
        student=np.array([row[1] for row in rows], dtype=object),
        numbers=np.array([[float(row[2]), float(row[3])] for row in rows], dtype=np.float32),
        defaulted=np.array([row[0] == "Yes" for row in rows], dtype=np.int64),
    )


def split(data: Customers) -> tuple[Customers, Customers]:
    """Training and test rows, 7 : 3, the same every time."""
    order = np.random.default_rng(SEED).permutation(len(data.defaulted))
    cut = len(order) * 7 // 10
    return data.take(order[:cut]), data.take(order[cut:])


def train_trees(train: Customers, trees: int = 200) -> Any:
    """A LightGBM classifier; on one thread, so that it is the same model on every machine."""
    import lightgbm

    model = lightgbm.LGBMClassifier(
        n_estimators=trees,
        num_leaves=15,
        learning_rate=0.03,
        random_state=SEED,
        n_jobs=1,
        deterministic=True,
        verbose=-1,
    )
    return model.fit(train.features(), train.defaulted)


def frame(data: Customers) -> Any:
    """The customers as a pandas DataFrame, which is what the pipeline's column selection works on."""
    import pandas

    return pandas.DataFrame({"student": data.student, "balance": data.numbers[:, 0], "income": data.numbers[:, 1]})


def train_pipeline(train: Customers) -> Any:
    """Scaler and one-hot encoder by column, then a logistic regression."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = ColumnTransformer(
        [("number", StandardScaler(), ["balance", "income"]), ("word", OneHotEncoder(), ["student"])]
    )
    return Pipeline([("columns", columns), ("model", LogisticRegression())]).fit(frame(train), train.defaulted)


def save(model: hr.Model, path: Path) -> Path:
    """Writes a loaded model as a plain ONNX file, for a model repository or for any other runtime."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.to_proto().SerializeToString())
    return path


def trees_request(data: Customers) -> dict[str, np.ndarray]:
    """`data` as one Request of the tree model."""
    return {"x": data.features()}


def pipeline_request(data: Customers) -> dict[str, np.ndarray]:
    """`data` as one Request of the pipeline."""
    return {"student": data.student[:, None], "balance": data.numbers[:, :1], "income": data.numbers[:, 1:]}


def auc(defaulted: np.ndarray, risk: np.ndarray) -> float:
    """Area under the ROC curve: how often a defaulter is ranked above a payer; ties count half."""
    bad, good = risk[defaulted == 1], np.sort(risk[defaulted == 0])
    above = np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")
    return float(above.mean() / (2 * len(good)))


def check(name: str, model: hr.Model, request: dict[str, np.ndarray], expected: np.ndarray, truth: np.ndarray) -> bool:
    """Runs a model on `request`, compares with the framework's own probabilities, and says how it went."""
    engine = model.compile()
    got = engine(request)["probabilities"]
    single = [engine({key: value[row : row + 1] for key, value in request.items()}) for row in range(ROWS_ALONE)]
    same = np.array_equal(np.concatenate([result["probabilities"] for result in single]), got[:ROWS_ALONE])
    error = float(np.abs(got - expected).max())
    print(f"\n{name}: {str(engine.plan).splitlines()[0]}")
    print(f"  AUC {auc(truth, got[:, 1]):.4f}, by the framework itself {auc(truth, expected[:, 1]):.4f}")
    print(f"  max abs error {error:.1e} (at most {PARITY_MAX:g}): {'ok' if error <= PARITY_MAX else 'TOO MUCH'}")
    print(f"  a row alone gives the same bits as in the block: {'yes' if same else 'NO'}")
    return error <= PARITY_MAX and same


def main() -> int:
    """Trains, loads and compares both models; returns the exit code."""
    train, test = split(customers())
    bad = int(test.defaulted.sum())
    print(f"{len(train.defaulted)} customers to train on, {len(test.defaulted)} to test, {bad} of whom defaulted")
    trees, pipeline = train_trees(train), train_pipeline(train)
    models = {
        "LightGBM": hr.load(trees, name="credit"),
        "pipeline": hr.load(pipeline, name="credit_pipeline", example_inputs=frame(train)[:5]),
    }
    requests = {"LightGBM": trees_request(test), "pipeline": pipeline_request(test)}
    expected = {
        "LightGBM": trees.predict_proba(test.features()),
        "pipeline": pipeline.predict_proba(frame(test)),
    }
    fine = [check(name, models[name], requests[name], expected[name], test.defaulted) for name in models]
    for model in models.values():
        print(f"wrote {save(model, MODELS / model.name / '1' / 'model.onnx')}")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
