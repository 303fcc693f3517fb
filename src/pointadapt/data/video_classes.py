"""Class lists of the published video benchmarks, in the order of their label ids."""

MSR_ACTION3D = (
    "high arm wave", "horizontal arm wave", "hammer", "hand catch", "forward punch", "high throw", "draw x",
    "draw tick", "draw circle", "hand clap", "two hand wave", "side boxing", "bend", "forward kick", "side kick",
    "jogging", "tennis swing", "tennis serve", "golf swing", "pick up and throw",
)  # fmt: skip
#: NTU RGB+D 120; the first 60 are NTU RGB+D 60.
NTU = (
    "drink water", "eat meal/snack", "brushing teeth", "brushing hair", "drop", "pickup", "throw", "sitting down",
    "standing up (from sitting position)", "clapping", "reading", "writing", "tear up paper", "wear jacket",
    "take off jacket", "wear a shoe", "take off a shoe", "wear on glasses", "take off glasses", "put on a hat/cap",
    "take off a hat/cap", "cheer up", "hand waving", "kicking something", "reach into pocket",
    "hopping (one foot jumping)", "jump up", "make a phone call/answer phone", "playing with phone/tablet",
    "typing on a keyboard", "pointing to something with finger", "taking a selfie", "check time (from watch)",
    "rub two hands together", "nod head/bow", "shake head", "wipe face", "salute", "put the palms together",
    "cross hands in front (say stop)", "sneeze/cough", "staggering", "falling", "touch head (headache)",
    "touch chest (stomachache/heart pain)", "touch back (backache)", "touch neck (neckache)",
    "nausea or vomiting condition", "use a fan (with hand or paper)/feeling warm", "punching/slapping other person",
    "kicking other person", "pushing other person", "pat on back of other person",
    "point finger at the other person", "hugging other person", "giving something to other person",
    "touch other person's pocket", "handshaking", "walking towards each other", "walking apart from each other",
    "put on headphone", "take off headphone", "shoot at the basket", "bounce ball", "tennis bat swing",
    "juggling table tennis balls", "hush (quite)", "flick hair", "thumb up", "thumb down", "make ok sign",
    "make victory sign", "staple book", "counting money", "cutting nails", "cutting paper (using scissors)",
    "snapping fingers", "open bottle", "sniff (smell)", "squat down", "toss a coin", "fold paper", "ball up paper",
    "play magic cube", "apply cream on face", "apply cream on hand back", "put on bag", "take off bag",
    "put something into a bag", "take something out of a bag", "open a box", "move heavy objects", "shake fist",
    "throw up cap/hat", "hands up (both hands)", "cross arms", "arm circles", "arm swings", "running on the spot",
    "butt kicks (kick backward)", "cross toe touch", "side kick", "yawn", "stretch oneself", "blow nose",
    "hit other person with something", "wield knife towards other person", "knock over other person (hit with body)",
    "grab other person's stuff", "shoot at other person with a gun", "step on foot", "high-five", "cheers and drink",
    "carry something with other person", "take a photo of other person", "follow other person",
    "whisper in other person's ear", "exchange things with other person", "support somebody with hand",
    "finger-guessing game (playing rock-paper-scissors)",
)  # fmt: skip
#: Subjects to learn from in the cross-subject splits of NTU RGB+D 60, and of 120 (Liu et al. 2019).
NTU60_SUBJECTS = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
NTU120_SUBJECTS = (
    *NTU60_SUBJECTS,
    45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94,
    95, 97, 98, 100, 103,
)  # fmt: skip
#: HOI4D semantic segmentation: id -> name; 0 (no label), 1 (noise) and ids without a name are not scored.
HOI4D_SEGMENTS = {
    2: "chair", 3: "table", 4: "water dispenser", 5: "ground", 9: "bucket", 10: "garbage can", 11: "wall",
    12: "sofa", 13: "bag", 15: "bowl", 16: "bottled drinks", 17: "mug", 19: "locker", 20: "express box",
    21: "kettle", 22: "hammer", 23: "pliers", 24: "toy car", 25: "laptop", 26: "refrigerator", 27: "safe",
    28: "stapler", 29: "desk lamp", 30: "trolley case", 31: "knife", 32: "cupboard", 33: "bed", 34: "bedside table",
    35: "door", 36: "window", 37: "mural", 38: "counter", 39: "curtain", 40: "pool", 41: "pillow", 42: "carpet",
    43: "television", 44: "ceiling", 45: "other furniture", 46: "other objects", 48: "scissors",
}  # fmt: skip
HOI4D_IGNORED = tuple(i for i in range(49) if i not in HOI4D_SEGMENTS)
#: Synthia4D: raw id -> name of the 12 classes; void (0), sky (1) and reserved ids (13, 14) are not scored.
SYNTHIA = {
    2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole", 8: "car", 9: "traffic sign",
    10: "pedestrian", 11: "bicycle", 12: "lanemarking", 15: "traffic light",
}  # fmt: skip
SYNTHIA_IGNORED = (0, 1, 13, 14)
#: SHREC'17, from gesture 1.
SHREC = (
    "grab", "tap", "expand", "pinch", "rotate clockwise", "rotate counter-clockwise", "swipe right", "swipe left",
    "swipe up", "swipe down", "swipe x", "swipe +", "swipe v", "shake",
)  # fmt: skip
RADHAR = ("boxing", "jack", "jump", "squats", "walk")
