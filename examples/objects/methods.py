"""Every object method on ModelNet10 with 5 %, 20 % and 100 % of the labels, on the bundled nano-mae: one protocol.

    pointadapt init modelnet10/ --up z                  # the folder of modelnet10_{train,test}_1024.npz
    python examples/objects/methods.py modelnet10/ --out runs/objects-methods

May be stopped and started again, and started several times at once: finished runs are kept in --out.
"""

import argparse

from pointadapt.compare.compare import compare

ARMS = (
    "head only, random weights = random:linear", "head only = linear", "bitfit", "ssf", "lora", "adapter",
    "adaptformer",
    "prefix", "vpt",
    "VPT shallow = vpt[deep=false]", "idpt", "dapt", "pointlora", "pointgst", "pointpeft", "gaprompt",
    "full", "full, random weights = random:full",
)  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", default="runs/objects-methods")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report-only", action="store_true")
    asked = parser.parse_args()
    compare(
        asked.data, asked.out, ARMS, seeds=3, labels=("5%", "20%", "100%"), factors=(1.0, 3.0),
        report_only=asked.report_only, backbone="nano-mae", steps=asked.steps, eval_every=asked.steps,
        lr=1e-3, head_lr=1e-3,
        precision="bf16", threads=asked.threads,
    )  # fmt: skip
