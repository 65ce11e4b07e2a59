"""Generates customer-support messages of a web shop: the team that answers, a text, its intent and the right reply.

Four teams answer messages that reach them in four ways. Their customers speak differently: each team's use words of
their own, ask most things in their own sentences, and ask mostly for some of the intents. So whoever has seen the
messages of one team knows the others' less well.

Intents overlap on purpose. Some sentences occur under two intents ("i want my money back" is a refund or a return),
words have typing errors, and a small share of the training labels is wrong. So no classifier reaches 100%, and several
classifiers make different mistakes. The same seed gives the same rows on every machine.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PRODUCTS = (
    "jacket", "lamp", "kettle", "backpack", "blender", "watch", "tent", "desk", "camera", "bike",
)  # fmt: skip


@dataclass(frozen=True)
class Team:
    """How the customers of one team begin and end their messages, and what they mostly ask for."""

    greetings: Sequence[str]
    contexts: Sequence[str]
    closings: Sequence[str]
    usual: Sequence[str]
    """The intents that most of its messages have."""


TEAMS: Mapping[str, Team] = {
    "mail": Team(
        ("dear support", "good morning", "to whom it may concern", ""),
        (
            "i ordered a {product} last week",
            "this is about my {product}",
            "i have been a customer for years and ordered a {product}",
        ),
        ("kind regards", "thank you in advance", "i look forward to your answer"),
        ("return_item", "refund", "damaged_item", "wrong_item"),
    ),
    "chat": Team(
        ("hi", "hey there", "hi team", ""),
        ("got a {product} from you", "its about the {product}", "me again, the {product}"),
        ("thx", "cheers", ""),
        ("order_status", "late_delivery", "cancel_order", "change_address"),
    ),
    "phone": Team(
        ("hello", "yes hello", "good afternoon", ""),
        (
            "the customer has a {product}",
            "they say they bought the {product} in the shop",
            "the caller paid for a {product} by card",
        ),
        ("please call back", "they are waiting", "they call again tomorrow"),
        ("double_charge", "payment_failed", "refund", "order_status"),
    ),
    "social": Team(
        ("hey @shop", "@shop", "seriously @shop", ""),
        (
            "my {product} order is the third one this year",
            "i got a {product} as a gift",
            "everybody loves your {product}",
        ),
        ("please help", "can you sort this out", "anyone there"),
        ("discount_code", "exchange_item", "late_delivery", "wrong_item"),
    ),
}
"""The teams, each with the customers that it hears."""
USUAL_SHARE = 0.7
"""Share of a team's messages that have one of its usual intents."""
OWN_WORDS_SHARE = 0.85
"""Share of a team's questions that are asked in the sentences of its own customers."""


@dataclass(frozen=True)
class Intent:
    """How customers ask for one thing, and the right answer."""

    asks: Sequence[str]
    """Two sentences of each team's customers, in the order of the teams."""
    notes: Sequence[str]
    """Short answers that agents wrote in a hurry."""
    reply: str
    """The answer that the shop wants to give."""


INTENTS: Mapping[str, Intent] = {
    "order_status": Intent(
        (
            "where is my {product}",
            "can you tell me the status of my order",
            "has the {product} been shipped yet",
            "how do i track the {product}",
            "i need the tracking number",
            "when was my parcel sent",
            "is my order on its way",
            "did you send it already",
        ),
        ("let me look up the parcel", "it has been sent, here is the tracking"),
        "Your order is on its way. I have sent you the tracking link.",
    ),
    "late_delivery": Intent(
        (
            "the {product} should have been here days ago",
            "my parcel is late",
            "still waiting and the delivery date has passed",
            "why does the shipping take so long",
            "the delivery of the {product} is overdue",
            "i was promised delivery by friday and nothing came",
            "how much longer until my order comes",
            "it was meant to be here on monday",
        ),
        (
            "sorry it takes so long, i will chase the courier",
            "the courier is behind, two more days",
        ),
        "I am sorry for the delay. The courier will bring it within two days.",
    ),
    "cancel_order": Intent(
        (
            "please cancel my order",
            "i do not need the {product} anymore",
            "stop the order before it ships",
            "i changed my mind about the {product}",
            "can i still cancel",
            "i ordered the {product} by mistake",
            "call off the shipment please",
            "take the {product} out of my order",
        ),
        ("order stopped", "done, cancelled before it ships"),
        "I have cancelled your order. Nothing will be charged.",
    ),
    "return_item": Intent(
        (
            "how do i send the {product} back",
            "i want to return the {product}",
            "where do i get a return label",
            "the {product} does not suit me",
            "what is your return policy",
            "i would like to give it back",
            "how long can i return the {product}",
            "it has to go back to you",
        ),
        ("sure, send it back with the label", "thirty days to return it, label sent"),
        "You can return it within thirty days. The return label is in your inbox.",
    ),
    "refund": Intent(
        (
            "when do i get my refund",
            "the refund for the {product} has not arrived",
            "i sent it back but got no money",
            "please refund me",
            "how long does a refund take",
            "my money is still not on my account",
            "you owe me the money for the {product}",
            "i never saw the money for the {product} again",
        ),
        ("the money is on its way back", "refund booked, give it five days"),
        "Your refund is booked. It reaches your account in five days.",
    ),
    "exchange_item": Intent(
        (
            "can i swap the {product} for another size",
            "i would like a different colour",
            "please exchange the {product}",
            "the {product} is too small",
            "do you have the {product} one size bigger",
            "i want to change it for the other model",
            "is an exchange free",
            "do you trade the {product} for a larger one",
        ),
        ("we can swap it, which one instead", "exchange is fine, tell me the model"),
        "We will gladly exchange it. Tell us which model you would like.",
    ),
    "damaged_item": Intent(
        (
            "the {product} arrived broken",
            "my {product} stopped working after a day",
            "there is a crack in the {product}",
            "the box was crushed and the {product} is damaged",
            "it does not switch on",
            "a part of the {product} is missing",
            "the {product} has scratches all over",
            "the {product} is faulty",
        ),
        ("sorry it broke, i send a new one", "that is faulty, replacement today"),
        "I am sorry that it is damaged. A new one leaves our store today.",
    ),
    "wrong_item": Intent(
        (
            "you sent me the wrong thing",
            "this is not the {product} i ordered",
            "i got something else instead of a {product}",
            "the parcel is for another customer",
            "wrong colour in the box",
            "i received a different model",
            "someone mixed up my order",
            "that is someone else's {product}",
        ),
        ("we mixed it up, the right one is packed", "wrong parcel, sorry, correct one follows"),
        "I am sorry for the mix up. The right one is being packed now.",
    ),
    "double_charge": Intent(
        (
            "i was charged twice",
            "the {product} shows up two times on my statement",
            "you took the money twice",
            "there is an extra charge on my card",
            "why did i pay double for the {product}",
            "the amount on my card is wrong",
            "two payments for one {product}",
            "my bank shows the amount twice",
        ),
        ("i see both payments, one goes back", "charged twice indeed, fixed tomorrow"),
        "One of the two payments will be sent back tomorrow.",
    ),
    "payment_failed": Intent(
        (
            "my payment did not go through",
            "the checkout refuses my card",
            "i cannot pay for the {product}",
            "the payment page shows an error",
            "my card was declined",
            "paying for the {product} fails every time",
            "which cards do you accept",
            "it will not take my money",
        ),
        ("try to pay once more", "checkout reset, use the card again"),
        "Please try the payment again. We have reset the checkout.",
    ),
    "change_address": Intent(
        (
            "i moved and need a new delivery address",
            "please send the {product} to my office",
            "the address on my order is wrong",
            "can you change where it ships to",
            "i typed the wrong street",
            "update my address please",
            "deliver the {product} to my neighbour",
            "we live somewhere else now",
        ),
        ("new address noted", "i changed where it goes"),
        "Your order will go to the new address. Please confirm it by mail.",
    ),
    "discount_code": Intent(
        (
            "my voucher does not work",
            "where do i enter the discount code",
            "the code for the {product} is not accepted",
            "do you have a coupon for the {product}",
            "i forgot to use my voucher",
            "the price is higher than in your offer",
            "is the {product} on sale",
            "the rebate was not taken off",
        ),
        ("voucher added", "the offer is in your basket now"),
        "I have added the discount. The new price is in your basket.",
    ),
}

# Sentences with two possible intents; the first intent is twice as frequent.
SHARED: Sequence[tuple[str, tuple[str, str]]] = (
    ("i want my money back for the {product}", ("refund", "return_item")),
    ("where is my parcel, it has been a week", ("late_delivery", "order_status")),
    ("nothing has arrived yet", ("late_delivery", "order_status")),
    ("i do not want the {product}", ("cancel_order", "return_item")),
    ("the {product} is not what i expected", ("return_item", "wrong_item")),
    ("can i get another {product} instead", ("exchange_item", "damaged_item")),
    ("something is wrong with my payment", ("payment_failed", "double_charge")),
    ("the wrong amount was taken for the {product}", ("double_charge", "discount_code")),
    ("it went to the wrong place", ("change_address", "wrong_item")),
)

SHARED_SHARE = 0.1
"""Share of messages that use one of the shared sentences."""
TYPO_SHARE = 0.08
"""Share of words with one letter dropped, doubled or swapped."""
WRONG_LABEL_SHARE = 0.04
"""Share of training rows with a wrong label."""


def mistype(word: str, rng: random.Random) -> str:
    """Drop, double or swap one letter of a word. Words of fewer than four letters stay."""
    if len(word) < 4:
        return word
    place = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:place] + word[place + 1 :]
    if kind == 1:
        return word[:place] + word[place] + word[place:]
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def message(team: Team, ask: str, product: str, rng: random.Random) -> str:
    """Put the words of a team's customer around a question."""
    context = "" if "{product}" in ask and rng.random() < 0.5 else rng.choice(team.contexts)
    middle = [context, ask]
    if rng.random() < 0.3:
        middle.reverse()
    parts = [rng.choice(team.greetings), *middle, rng.choice(team.closings)]
    text = ", ".join(part for part in parts if part).format(product=product)
    return " ".join(
        mistype(word, rng) if product not in word and rng.random() < TYPO_SHARE else word
        for word in text.split(" ")
    )


def meaning(team: str, rng: random.Random) -> tuple[str, str]:
    """Draw an intent and a question of one of the team's customers."""
    usual = TEAMS[team].usual
    if rng.random() < SHARED_SHARE:
        ask, (often, seldom) = rng.choice(SHARED)
        return (often if rng.random() < 2 / 3 else seldom), ask
    intent = rng.choice(usual if rng.random() < USUAL_SHARE else list(INTENTS))
    asks = INTENTS[intent].asks
    own = asks[list(TEAMS).index(team) :: len(TEAMS)]
    return intent, rng.choice(own if rng.random() < OWN_WORDS_SHARE else asks)


def rows(split: str, count: int, seed: int) -> list[dict[str, str]]:
    """Make `count` rows with `team`, `text`, `intent`, `note` and `reply`, of all teams in turn. Only the split called
    `train` has wrong labels.

    Notes and replies always fit the true intent.
    """
    rng = random.Random(f"{split}-{seed}")
    made = []
    for number in range(count):
        team = list(TEAMS)[number % len(TEAMS)]
        (intent, ask), product = meaning(team, rng), rng.choice(PRODUCTS)
        label = intent
        if split == "train" and rng.random() < WRONG_LABEL_SHARE:
            label = rng.choice([name for name in INTENTS if name != intent])
        made.append(
            {
                "team": team,
                "text": message(TEAMS[team], ask, product, rng),
                "intent": label,
                "note": rng.choice(INTENTS[intent].notes),
                "reply": INTENTS[intent].reply,
            }
        )
    return made
