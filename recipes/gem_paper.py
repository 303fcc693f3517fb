"""Settings of the GEM paper (arXiv 2505.22444) that its recipes share. It names few: the rest is Sonata's own recipe,
which it says it follows."""

from typing import Any

SETTINGS: dict[str, Any] = dict(
    backbone="sonata", epochs=100, batch_size=24, points=102_400, lr=2e-3, head_lr=2e-3, backbone_lr=2e-4,
    weight_decay=0.02, clip=3.0, schedule="onecycle", warmup=0.05, drop_path=True, mix3d=0.8, precision="fp16",
    num_workers=8, eval_every=500, tta=13, tile=1_000_000,
)  # fmt: skip
#: Rows by name -> method and options whose number of weights fits the printed one.
METHODS: dict[str, dict[str, Any]] = {
    "gem": {"method": "gem"},
    "linear": {"method": "linear"},
    "bitfit": {"method": "bitfit"},
    "adapter": {"method": "houlsby", "options": {"mid": 96}},
    "lora": {"method": "lora", "options": {"r": 64, "lora_alpha": 128}},
    "prompt": {"method": "prefix", "options": {"n": 384}},
    "ft": {"method": "full"},
    "full": {"method": "full", "decoder": True},
}
GUESSED = (
    "the paper gives no rates, batch size or schedule: those of Sonata's recipe are taken",
    "LoRA's and Adapter's ranks are those whose number of weights fits the table; their other options are not known",
    "Prompt's kind is not known: 384 learned keys and values for each attention fit the table; BitFit trains 0.13 M "
    "here, all biases of the encoder and the head, where the paper prints 0.2 M",
    "full tuning with the decoder is Sonata's figure: where epochs are given, as many as in Sonata's recipe",
)
FROM_SCANNET = "epochs are not given for this data set: as many as ScanNet's 100 of 800, in proportion"
