"""Synthetic documents for dsv4-nano: grammars over small word lists, real facts, arithmetic, tools, needles, stories, code.

Everything is drawn from a seeded random.Random.  A CRC of what makes an instance (a fact and its phrasing, the numbers of a
sum, the names in a function) puts a twentieth of them into the evaluation set and a twentieth into the held-out set; training
never draws those.  Kinds without such a split (tools, needles, files, stories) have too many instances to meet one twice.

Question makers return (question, answer, short, reasoning): `short` is the part of the answer that carries it."""
import json
import re
import zlib

from chatenc import encode, tool_preamble, BOS, EOS
from facts import ATLANTIS, COLORMIX, COUNTRIES, DAYS, ELEMENTS, LEGS, LISTS, MDAYS, MISC, MONTHS, OPPOSITES, ORD, PLANETS, SMALLTALK, SOUNDS, YOUNG

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor Wendy Zoe Adam Bella
Carl Diana Eric Fiona George Hana Ivan Julia Kevin Lily Max Nina Oscar Peter Quinn Ruth Simon Tom Uma Vera Will Yara Lucas Maria""".split()
ADJ = """red blue green yellow small big old new shiny broken wooden silver golden tiny heavy soft warm cold bright dusty striped round
long short smooth quiet strange pretty plain clean""".split()
COLOR = ADJ[:4] + "black white brown purple".split()
OBJ = """kite ball book lamp hat coat bag cup key map drum boat bike clock mirror ring box chair table basket bell bottle brush button candle
cart coin doll flag flute glove jar kettle ladder letter mask nail needle pencil pillow ribbon rope scarf shell shovel spoon stamp sword
towel toy umbrella violin wagon wheel whistle blanket camera compass crown feather hammer helmet lantern necklace painting""".split()
PLACE = """park garden forest river beach market school library kitchen garage attic cellar bridge castle farm field harbor hill lake
meadow museum station tower village valley workshop yard barn cave church island mill mountain office shop square stable street""".split()
ANIMAL = "dog cat horse rabbit fox bear duck goat owl mouse wolf frog bird cow sheep turtle squirrel hedgehog".split()
FOOD = "bread soup cake apples cheese rice honey pears cookies salad tea milk plums nuts berries pie noodles beans".split()
FEEL = "happy sad tired proud angry afraid calm excited hungry curious surprised lonely".split()
WEATHER = "sunny rainy windy cloudy foggy snowy stormy".split()
CODEWORDS = """maple falcon harbor cobalt ember granite willow raven canyon meteor saffron juniper glacier lantern orchid tundra velvet
walnut zephyr amber basil cedar dahlia eclipse fern garnet hazel indigo jasper kelp lotus marble nectar opal pepper quartz ruby
sable topaz umber violet wasp yarrow zinc anchor beacon comet drift echo flint grove haven iron jade knot lark mint north oasis""".split()
CITIES = [c[1] for c in COUNTRIES] + "London Milan Munich Sydney Boston Chicago Dallas Denver Miami Seattle Toronto Mumbai Shanghai Osaka Naples Lyon Porto Geneva Zurich Bergen".split()


def crc_split(key):
    """the set an instance belongs to: train, eval or held"""
    h = zlib.crc32(repr(key).encode()) % 20
    return "eval" if h == 0 else "held" if h == 1 else "train"


def num(r, digits):
    return r.randint(10 ** (digits - 1), 10 ** digits - 1)


# ---------------------------------------------------------------- facts
CAP_Q = ["What is the capital of {0}?", "Name the capital of {0}.", "Which city is the capital of {0}?", "Tell me the capital city of {0}.",
         "Can you tell me what the capital of {0} is?", "I forgot the capital of {0}. What is it?", "capital of {0}?",
         "What's the capital city of {0}?", "Do you know the capital of {0}?", "Please give me the capital of {0}.", "Quick question: the capital of {0}?",
         "The capital of {0} is which city?", "what is the capital of {0}", "Which city is the seat of government in {0}?"]
REV_Q = ["{1} is the capital of which country?", "Which country has the capital {1}?", "In which country is {1} the capital?", "What country is {1} the capital of?",
         "Name the country whose capital is {1}."]
CONT_Q = ["On which continent is {0}?", "Which continent is {0} in?", "What continent does {0} belong to?", "Where in the world is {0}?", "Tell me the continent of {0}.", "Name the continent of {0}."]
LANG_Q = ["What language is spoken in {0}?", "Which language do people speak in {0}?", "What is the main language of {0}?", "Name the language of {0}.", "Tell me the language spoken in {0}."]
CUR_Q = ["What is the currency of {0}?", "Which currency is used in {0}?", "What money do people use in {0}?", "Name the currency of {0}.", "Tell me the currency used in {0}."]
SYM_Q = ["What is the symbol of {0}?", "What is the chemical symbol for {0}?", "Give me the symbol for the element {0}.", "How is {0} written in the periodic table?", "Which symbol does {0} have?", "Name the chemical symbol of {0}."]
NUM_Q = ["What is the atomic number of {0}?", "Which atomic number does {0} have?", "Give me the atomic number of {0}.", "Tell me the atomic number of {0}.", "How many protons does {0} have?"]
RSYM_Q = ["Which element has the symbol {1}?", "What element is {1}?", "What does the chemical symbol {1} stand for?", "Name the element with the symbol {1}."]
RNUM_Q = ["Which element has atomic number {2}?", "What is element number {2}?", "Name the element with {2} protons."]
OPP_Q = ["What is the opposite of {0}?", "Give me the opposite of {0}.", "Name the opposite of the word {0}.", "Which word is the opposite of {0}?", "Tell me an antonym of {0}."]
YNG_Q = ["What is a baby {0} called?", "What do you call a young {0}?", "Name the young of a {0}.", "A young {0} is called what?"]
SND_Q = ["What sound does a {0} make?", "Which sound does a {0} make?", "How does a {0} sound?", "Tell me the sound of a {0}."]
LEG_Q = ["How many legs does a {0} have?", "What is the number of legs of a {0}?", "Count the legs of a {0}."]


def art(w):
    return ("An " if w[0] in "aeiou" else "A ") + w


def fact_tables():
    """[(kind, key, questions, answer, short)]"""
    f = []
    for c in COUNTRIES:
        f.append(("capital", c[0], CAP_Q, f"The capital of {c[0]} is {c[1]}.", c[1], c))
        f.append(("capital_of", c[1], REV_Q, f"{c[1]} is the capital of {c[0]}.", c[0], c))
        f.append(("continent", c[0], CONT_Q, f"{c[0]} is in {c[2]}.", c[2], c))
        f.append(("language", c[0], LANG_Q, f"The main language of {c[0]} is {c[3]}.", c[3], c))
        f.append(("currency", c[0], CUR_Q, f"The currency of {c[0]} is the {c[4]}.", c[4], c))
    for e in ELEMENTS:
        f.append(("symbol", e[0], SYM_Q, f"The symbol of {e[0]} is {e[1]}.", e[1], e))
        f.append(("atomic number", e[0], NUM_Q, f"The atomic number of {e[0]} is {e[2]}.", str(e[2]), e))
        f.append(("element", e[1], RSYM_Q, f"{e[1]} is the symbol of {e[0]}.", e[0], e))
        f.append(("element", e[2], RNUM_Q, f"Element number {e[2]} is {e[0]}.", e[0], e))
    for a, b in OPPOSITES:
        f.append(("opposite", a, OPP_Q, f"The opposite of {a} is {b}.", b, (a,)))
        f.append(("opposite", b, OPP_Q, f"The opposite of {b} is {a}.", a, (b,)))
    for a, b in YOUNG:
        f.append(("young", a, YNG_Q, f"A young {a} is called a {b}.", b, (a,)))
    for a, b in SOUNDS:
        f.append(("sound", a, SND_Q, f"{art(a)} {b}.", b, (a,)))
    for a, b in LEGS.items():
        f.append(("legs", a, LEG_Q, f"{art(a)} has {b} legs.", b, (a,)))
    for i, p in enumerate(PLANETS):
        f.append(("planet", i, [f"Which planet is the {ORD[i]} from the Sun?", f"What is the {ORD[i]} planet from the Sun?", f"Name the {ORD[i]} planet."], f"The {ORD[i]} planet from the Sun is {p}.", p, ()))
    for i, p in enumerate(MONTHS):
        f.append(("month", i, [f"What is the {ORD[i]} month of the year?", f"Which month is the {ORD[i]} one?", f"Name the {ORD[i]} month."], f"The {ORD[i]} month of the year is {p}.", p, ()))
        f.append(("month days", i, [f"How many days are in {p}?", f"What is the number of days in {p}?", f"How long is {p}?"], f"{p} has {MDAYS[i]} days.", str(MDAYS[i]), ()))
        n = MONTHS[(i + 1) % 12]
        f.append(("next month", i, [f"Which month comes after {p}?", f"What month follows {p}?", f"Name the month after {p}."], f"{n} comes after {p}.", n, ()))
    for i, p in enumerate(DAYS):
        n, q = DAYS[(i + 1) % 7], DAYS[(i + 6) % 7]
        f.append(("next day", i, [f"Which day comes after {p}?", f"What day follows {p}?", f"Today is {p}. What day is tomorrow?"], f"The day after {p} is {n}.", n, ()))
        f.append(("previous day", i, [f"Which day comes before {p}?", f"What day is before {p}?", f"Today is {p}. What day was yesterday?"], f"The day before {p} is {q}.", q, ()))
    for a, b, c in COLORMIX:
        for x, y in ((a, b), (b, a)):
            f.append(("mix", x + y, [f"What color do you get when you mix {x} and {y}?", f"Mix {x} and {y}: which color is it?", f"What do {x} and {y} make together?"], f"{x.capitalize()} and {y} make {c}.", c, ()))
    for q, a, s in MISC:
        f.append(("fact", q.split("/")[0], q.split("/"), a, s, ()))
    return f


FACTS = fact_tables()
FACT_KIND = {}
for _f in FACTS:
    FACT_KIND.setdefault(_f[0], []).append(_f)
KIND_W = {"capital": 3.0, "fact": 3.0, "capital_of": 1.5, "continent": 1.5, "language": 1.5, "currency": 1.5, "symbol": 1.5, "atomic number": 1.5, "element": 2.0}
KINDS = list(FACT_KIND)
KWTS = [KIND_W.get(k, 0.6) for k in KINDS]


def fact(r, split="train"):
    """(question, answer, short, reasoning); a (fact, phrasing) pair belongs to one split"""
    for _ in range(1000):
        k = r.choices(KINDS, KWTS)[0]
        f = r.choice(FACT_KIND[k])
        qi = r.randrange(len(f[2]))
        # hold out (fact, phrasing) pairs; a fact with <= 3 phrasings always keeps them for training
        s = crc_split((f[0], f[1], qi)) if len(f[2]) > 3 else "train"
        if s == split:
            return f[2][qi].format(*f[5]), f[3], f[4], f"The question is about: {f[0]}. I recall: {f[4]}."
    raise RuntimeError


def unknown(r):
    """a country that does not exist"""
    c = r.choice(ATLANTIS)
    q = r.choice(CAP_Q[:6] + CUR_Q[:3] + LANG_Q[:3]).format(c)
    return q, f"I do not know {c}.", "do not know", f"I do not know a country called {c}."


def smalltalk(r):
    q, a = r.choice(SMALLTALK)
    return r.choice(q.split("/")), a, a, "This is small talk. I answer politely."


# ---------------------------------------------------------------- reasoning
ADD_Q = ["What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "Compute {a} + {b}.", "How much is {a} + {b}?", "Please add {a} and {b}.", "{a}+{b}", "What is the sum of {a} and {b}?"]
SUB_Q = ["What is {a} - {b}?", "What is {a} minus {b}?", "Subtract {b} from {a}.", "{a} - {b} = ?", "Compute {a} - {b}.", "How much is {a} - {b}?", "{a}-{b}"]
MUL_Q = ["What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.", "{a} x {b} = ?", "Compute {a} * {b}."]
CMP_Q = ["Which number is larger, {a} or {b}?", "Which is bigger: {a} or {b}?", "Compare {a} and {b}. Which one is greater?", "Is {a} or {b} the larger number?"]
COUNT_Q = ["How many {w} things are in this list: {l}?", "Count the {w} things: {l}.", "In the list {l}, how many are {w}?"]
CMPL_Q = ["Which number is smaller, {a} or {b}?", "Which is less: {a} or {b}?", "Is {a} or {b} the smaller number?"]


def add_steps(a, b):
    """digit by digit, ones first"""
    x, y = f"{a:02d}", f"{b:02d}"
    w = max(len(x), len(y))
    x, y = x.zfill(w), y.zfill(w)
    c, out = 0, []
    for i in range(w - 1, -1, -1):
        s = int(x[i]) + int(y[i]) + c
        t = f"{x[i]} + {y[i]}" + (" + 1" if c else "") + f" = {s}"
        c2 = s // 10
        t += f", write {s % 10}" + (", carry 1" if c2 else "")
        out.append(t)
        c = c2
    return "; ".join(out) + f". The result is {a + b}."


def sub_steps(a, b):
    x, y = f"{a:02d}", f"{b:02d}".zfill(len(f"{a:02d}"))
    c, out = 0, []
    for i in range(len(x) - 1, -1, -1):
        s = int(x[i]) - int(y[i]) - c
        t = f"{x[i]} - {y[i]}" + (" - 1" if c else "")
        c = 0
        if s < 0:
            s += 10
            c = 1
        t += f" = {s}" + (", borrow 1" if c else "")
        out.append(t)
    return "; ".join(out) + f". The result is {a - b}."


def cmp_steps(a, b):
    """digit by digit, from the left; as many digits in both"""
    out = []
    for x, y in zip(str(a), str(b)):
        out.append(f"{x} {'<' if x < y else '>' if x > y else '='} {y}")
        if x != y:
            break
    return f"{a} and {b}: " + ", ".join(out) + "."


def scan(xs, keep, sep):
    """the best of xs, by keep(best so far, next), and the steps that find it"""
    best, st = xs[0], [f"start {xs[0]}"]
    for x in xs[1:]:
        best = keep(best, x)
        st.append(f"see {x}, keep {best}")
    return best, sep.join(st)


def sort_steps(xs):
    """the smallest of what is left, again and again"""
    xs, out = list(xs), []
    while len(xs) > 1:
        best, st = scan(xs, min, ", ")
        xs.remove(best)
        out.append(f"{st}; left {', '.join(map(str, xs))}")
    return ". ".join(out) + "."


def arith(r, split="train"):
    """(question, answer, short, reasoning, kind)"""
    for _ in range(1000):
        k = r.choices(["add", "sub", "mul", "cmp", "count", "max", "word", "sort"], [4, 3, 2.5, 2.5, 3, 1.5, 2, 2.5])[0]
        if k == "add":
            a, b = num(r, r.choice([1, 2, 2, 2, 2])), num(r, r.choice([1, 2, 2, 2, 2]))
            key = (k, a, b)
            q, s, t = r.choice(ADD_Q).format(a=a, b=b), str(a + b), add_steps(a, b)
            ans = f"{a} + {b} = {s}"
        elif k == "sub":
            a, b = num(r, r.choice([2, 2, 2, 1])), num(r, r.choice([1, 2, 2]))
            if a < b:
                a, b = b, a
            key = (k, a, b)
            q, s, t = r.choice(SUB_Q).format(a=a, b=b), str(a - b), sub_steps(a, b)
            ans = f"{a} - {b} = {s}"
        elif k == "mul":
            a, b = r.randint(2, 10), r.randint(2, 10)
            key = (k, a, b, r.randint(0, 3))
            q, s = r.choice(MUL_Q).format(a=a, b=b), str(a * b)
            t, ans = f"{a} times {b} is {s}.", f"{a} * {b} = {s}"
        elif k == "cmp":
            d = r.choice([1, 2, 2, 3])
            a, b = num(r, d), num(r, d)
            if a == b:
                continue
            key = (k, a, b)
            big = r.random() < 0.6
            q = r.choice(CMP_Q if big else CMPL_Q).format(a=a, b=b)
            m = max(a, b) if big else min(a, b)
            s, o = str(m), (min(a, b) if big else max(a, b))
            w = "larger" if big else "smaller"
            t, ans = cmp_steps(a, b) + f" {m} is {w} than {o}.", f"{m} is {w} than {o}."
        elif k == "count":
            ws = r.sample(COLOR, r.randint(2, 4))
            items = [(r.choice(ws + ws[:1] * 2), o) for o in r.sample(OBJ, r.randint(3, 8))]
            key = (k, tuple(items))
            q = r.choice(COUNT_Q).format(w=ws[0], l=", ".join(f"{c} {o}" for c, o in items))
            n, st = 0, []
            for c, o in items:
                n += c == ws[0]
                st.append(f"{c} {o}" + (f" {n}" if c == ws[0] else ""))
            s, t, ans = str(n), ", ".join(st) + f". The count is {n}.", f"There {'is' if n == 1 else 'are'} {n} {ws[0]} thing{'s' * (n != 1)}."
        elif k == "max":
            xs = [num(r, 2) for _ in range(r.randint(3, 5))]
            key = (k, tuple(xs))
            big = r.random() < 0.5
            q = r.choice(["What is the {w} of these numbers: {l}?", "Find the {w} number: {l}.", "Give me the {w} of {l}."]).format(w="largest" if big else "smallest", l=", ".join(map(str, xs)))
            best, st = scan(xs, max if big else min, "; ")
            s, t = str(best), st + "."
            ans = f"The {'largest' if big else 'smallest'} number is {s}."
        elif k == "sort":
            xs = [num(r, r.choice([1, 2, 2])) for _ in range(3)]
            key = (k, tuple(xs))
            q = r.choice(["Sort these numbers: {l}.", "Put these numbers in order: {l}.", "Order these numbers from small to large: {l}."]).format(l=", ".join(map(str, xs)))
            ys = sorted(xs)
            s = ", ".join(map(str, ys))
            t, ans = sort_steps(xs), f"In order: {s}."
        else:
            n, o = r.choice(NAMES), r.choice(OBJ) + "s"
            a, b = num(r, r.choice([1, 2])), num(r, r.choice([1, 2]))
            key = (k, n, o, a, b)
            if r.random() < 0.6:
                q = r.choice(["{n} has {a} {o} and buys {b} more. How many {o} does {n} have now?", "{n} finds {a} {o}. Later {n} gets {b} more. How many {o} are there?"]).format(n=n, a=a, b=b, o=o)
                s, t, ans = str(a + b), f"{a} + {b}: " + add_steps(a, b), f"{n} has {a + b} {o}."
            else:
                a, b = max(a, b), min(a, b)
                q = r.choice(["{n} has {a} {o} and gives away {b}. How many {o} are left?", "{n} has {a} {o}. {n} loses {b} of them. How many {o} remain?"]).format(n=n, a=a, b=b, o=o)
                s, t, ans = str(a - b), f"{a} - {b}: " + sub_steps(a, b), f"{n} has {a - b} {o} left."
        if crc_split(key) == split:
            return q, ans, s, t, k
    raise RuntimeError


# ---------------------------------------------------------------- text: filler, stories
def sent(r):
    """one filler sentence"""
    n, m = r.sample(NAMES, 2)
    a, o, p, p2 = r.choice(ADJ), r.choice(OBJ), *r.sample(PLACE, 2)
    an, fo, fe, we = r.choice(ANIMAL), r.choice(FOOD), r.choice(FEEL), r.choice(WEATHER)
    k = r.randrange(20)
    return (f"{n} walked to the {p} with a {a} {o}.", f"The {an} slept near the {p}.", f"It was a {we} day in the {p}.", f"{n} and {m} ate {fo} at the {p}.",
            f"{n} put the {o} next to the {p}.", f"The {a} {o} was in the {p}.", f"{n} felt {fe} and went home.", f"A {an} ran from the {p} to the {p2}.",
            f"{m} gave {n} a {o}.", f"{n} looked for the {a} {o} all day.", f"The road to the {p} was long.", f"{n} asked {m} about the {p}.",
            f"There was {fo} on the table.", f"{n} saw a {a} {an} in the {p}.", f"The {p} was quiet in the morning.", f"{n} told {m} a story about a {an}.",
            f"{m} was {fe} because the {o} was {r.choice(['lost', 'broken', 'found', 'gone'])}.", f"In the evening {n} cooked {fo}.", f"The {o} cost {r.randint(2, 90)} coins.",
            f"{n} wrote a letter to {m}.")[k]


def story(r, opening=False):
    """A short story; with opening=True also returns (opening, continuation, fact words)."""
    n, m = r.sample(NAMES, 2)
    a, o, p, p2 = r.choice(ADJ), r.choice(OBJ), *r.sample(PLACE, 2)
    an, fo, fe = r.choice(ANIMAL), r.choice(FOOD), r.choice(["happy", "proud", "glad", "calm"])
    k = r.randrange(6)
    if k == 0:
        s = [f"Once upon a time there was a child named {n}.", f"{n} had a {a} {o}.", f"One day {n} took the {o} to the {p}.", f"There {n} lost the {a} {o}.",
             f"{n} was sad and looked everywhere.", f"Then a friendly {an} came by.", f"The {an} had found the {a} {o} near the {p2}.", f"{n} thanked the {an} and gave it some {fo}.", f"In the end {n} was {fe} again."]
    elif k == 1:
        s = [f"{n} and {m} were good friends.", f"They lived close to the {p}.", f"One morning {n} said to {m}: let us go to the {p2}.", f"{m} took some {fo} and {n} took a {o}.",
             f"On the way they met a {an}.", f"The {an} was hungry, so {m} shared the {fo}.", f"At the {p2} they played with the {o} until evening.", f"Then {n} and {m} walked home and were {fe}."]
    elif k == 2:
        s = [f"There was an old {an} who lived in the {p}.", f"The {an} had a {a} {o} that everyone liked.", f"One night the {o} was gone.", f"{n} came to help the old {an}.",
             f"{n} looked in the {p2} and found the {a} {o}.", f"The old {an} was very {fe}.", f"To say thank you, the {an} gave {n} some {fo}."]
    elif k == 3:
        s = [f"{n} wanted to build a {o}.", f"The {o} had to be {a}.", f"First {n} went to the {p} to get wood.", f"Then {m} came to help.", "They worked for three days.",
             f"When the {a} {o} was ready, {n} and {m} ate {fo} together.", f"{m} said it was the best {o} in the {p2}.", f"{n} was {fe}."]
    elif k == 4:
        s = [f"It was a cold winter in the {p}.", f"A little {an} had nothing to eat.", f"{n} saw the {an} and brought it {fo}.", f"The next day the {an} came back with a {a} {o}.",
             f"{n} kept the {o} for many years.", f"Every winter {n} brought {fo} to the {an}.", f"They were {fe} together."]
    else:
        s = [f"{n} was afraid of the dark.", f"At night {n} heard a sound from the {p}.", f"{n} took a {a} {o} and went to look.", f"It was only a small {an}.",
             f"The {an} was looking for {fo}.", f"{n} laughed and gave the {an} some {fo}.", f"After that night {n} was not afraid any more.", f"{n} felt {fe}."]
    if not opening:
        return " ".join(s)
    c = r.randint(2, min(4, len(s) - 2))
    return " ".join(s[:c]), " ".join(s[c:]), k, c


STORY_Q = ["Continue the story: {0}", "Continue this story: {0}", "Please continue: {0}", "What happens next? {0}", "Finish the story: {0}"]
TELL_Q = ["Tell me a story about a {0} and a {1}.", "Write a short story with a {0} and a {1}.", "I want to hear a story about a {0} and a {1}."]


def chat_story(r):
    """a story to continue, or one about an animal and a thing"""
    if r.random() < 0.6:
        a, b, k, c = story(r, True)
        return r.choice(STORY_Q).format(a), b, b.split(". ")[0], "I continue the story with the same characters."
    n = r.choice(NAMES)
    an, o, a, p, fo = r.choice(ANIMAL), r.choice(OBJ), r.choice(ADJ), r.choice(PLACE), r.choice(FOOD)
    q = r.choice(TELL_Q).format(an, o)
    s = f"Once there was a {an} who had a {a} {o}. One day the {an} took the {o} to the {p}. There the {an} met {n}. {n} liked the {o} and gave the {an} some {fo}. The {an} and {n} were friends from that day on."
    return q, s, f"{an}", f"The story needs a {an} and a {o}."


# ---------------------------------------------------------------- needles
def needle_item(r):
    """(code word, sentence hidden in the text, question, answer, value)"""
    k = r.randrange(5)
    w = r.choice(CODEWORDS)
    if k == 0:
        v = "".join(r.choice("0123456789") for _ in range(r.choice([4, 5])))
        return w, f"The secret code for {w} is {v}.", r.choice(["What is the secret code for {0}?", "Tell me the secret code for {0}.", "Which secret code belongs to {0}?", "I need the secret code for {0}."]).format(w), f"The secret code for {w} is {v}.", v
    if k == 1:
        v = "".join(r.choice("0123456789") for _ in range(5))
        return w, f"Remember: the pass key of the {w} room is {v}.", r.choice(["What is the pass key of the {0} room?", "Give me the pass key of the {0} room.", "Which pass key opens the {0} room?"]).format(w), f"The pass key of the {w} room is {v}.", v
    if k == 2:
        v = r.choice(CITIES)
        return w, f"Agent {w} will meet you in {v}.", r.choice(["Where will agent {0} meet me?", "In which city will agent {0} meet me?", "Which city did agent {0} choose?"]).format(w), f"Agent {w} will meet you in {v}.", v
    if k == 3:
        v = r.choice(OBJ)
        return w, f"The box called {w} holds a {v}.", r.choice(["What is in the box called {0}?", "What does the box called {0} hold?", "Tell me what is in box {0}."]).format(w), f"The box called {w} holds a {v}.", v
    v = r.choice(NAMES)
    return w, f"The owner of the {w} house is {v}.", r.choice(["Who is the owner of the {0} house?", "Who owns the {0} house?", "Name the owner of the {0} house."]).format(w), f"The owner of the {w} house is {v}.", v


def needle(r, words, depth=None, n_extra=None, mode=None):
    """prompt text with about `words` words of filler; the needle sits at `depth` (0..1)"""
    body, n = [], 0
    while n < words:
        if r.random() < 0.12:
            x = story(r)
        else:
            x = sent(r)
        body.append(x)
        n += len(x.split())
    items, used = [], set()
    want = 1 + (r.choice([0, 0, 1, 1, 2, 3]) if n_extra is None else n_extra)
    while len(items) < want:
        it = needle_item(r)
        if it[0] not in used:
            used.add(it[0])
            items.append(it)
    d = r.random() if depth is None else depth
    for i, it in enumerate(items):
        pos = int(round((d if i == 0 else r.random()) * len(body)))
        body.insert(pos, it[1])
    w, s, q, ans, v = items[0]
    text = " ".join(body)
    f = r.randrange(3) if mode is None else mode
    if f == 0:
        p = text + "\n\n" + q
    elif f == 1:
        p = "Read this text and answer the question.\n\n" + text + "\n\nQuestion: " + q
    else:
        p = q + " Here is the text:\n\n" + text + "\n\n" + q
    return p, ans, v, f"I look for {w} in the text. I find: {s}", d


def needle_turns(r, words, asks):
    """turns: one text, then several questions about it"""
    body, n = [], 0
    while n < words:
        body.append(story(r) if r.random() < 0.12 else sent(r))
        n += len(body[-1].split())
    items = {}
    while len(items) < asks + r.choice([0, 0, 1, 2]):
        it = needle_item(r)
        items.setdefault(it[0], it)
    items = list(items.values())
    for it in items:
        body.insert(r.randint(0, len(body)), it[1])
    r.shuffle(items)
    out = [(q, ans, v, f"I look for {w} in the text. I find: {s}") for w, s, q, ans, v in items[:asks]]
    q = out[0][0]
    text = " ".join(body)
    p = r.choice(["{t}\n\n{q}", "Read this text and answer the question.\n\n{t}\n\nQuestion: {q}", "{q} Here is the text:\n\n{t}\n\n{q}"]).format(t=text, q=q)
    return [(p,) + out[0][1:]] + out[1:]


def memory_chat(r):
    """multi-turn: the user says something about himself and asks later"""
    n, c, an, o, ci = r.choice(NAMES), r.choice(["red", "blue", "green", "yellow", "purple", "orange", "black", "white"]), r.choice(ANIMAL), r.choice(OBJ), r.choice(CITIES)
    k = r.randrange(5)
    return [(r.choice(["My name is {0}.", "I am {0}.", "Hi, my name is {0}.", "Call me {0}."]).format(n), f"Nice to meet you, {n}!", r.choice(["What is my name?", "Do you remember my name?", "Who am I?"]), f"Your name is {n}.", n),
            (f"My favorite color is {c}.", f"{c.capitalize()} is a nice color.", r.choice(["What is my favorite color?", "Which color do I like most?"]), f"Your favorite color is {c}.", c),
            (f"I have a {an} called {n}.", f"{n} is a good name for a {an}.", r.choice(["What is my pet called?", "What is the name of my pet?"]), f"Your {an} is called {n}.", n),
            (f"I live in {ci}.", f"{ci} is a nice place.", r.choice(["Where do I live?", "In which city do I live?"]), f"You live in {ci}.", ci),
            (f"I bought a {o} today.", f"I hope you like your {o}.", r.choice(["What did I buy?", "What did I buy today?"]), f"You bought a {o}.", o)][k]


def repeat(r):
    """words, a sentence or digits to be said again"""
    k = r.randrange(3)
    if k == 0:
        t = " ".join(r.choice(r.choice([ADJ, OBJ, PLACE, FOOD, CODEWORDS])) for _ in range(r.randint(2, 6)))
    elif k == 1:
        t = sent(r)
    else:
        t = "".join(r.choice("0123456789") for _ in range(r.randint(3, 8)))
    q = r.choice(["Repeat after me: {0}", "Say exactly: {0}", "Copy this text: {0}", "Repeat: {0}"]).format(t)
    return q, t, t, "I copy the text."


LIST_Q = ["List {0} {1}.", "Name {0} {1}.", "Give me {0} {1}.", "Tell me {0} {1}.", "I need {0} {1}.", "Can you name {0} {1}?", "Please list {0} {1}.", "Write down {0} {1}."]


def listing(r, split="train"):
    """the first n of a known list"""
    for _ in range(1000):
        k, v = r.choice(LISTS)
        n, q = r.randint(2, 5), r.choice(LIST_Q)
        nw = r.choice([["two", "three", "four", "five"][n - 2], str(n)])
        if crc_split(("list", k, nw, q)) == split:
            a = ", ".join(v[:n])
            return q.format(nw, k), a.capitalize() + ".", a, f"The user wants {n} {k}."
    raise RuntimeError


def digits(r, lo, hi):
    return "".join(r.choice("0123456789") for _ in range(r.randint(lo, hi)))


def dense_copy(r):
    """copying and look-up in their densest form: (lists, said again), (keys with values, asked again)"""
    pool = r.choice([OBJ, ADJ + OBJ, CODEWORDS, NAMES, CITIES, CODEWORDS + OBJ + PLACE + FOOD, FILES])
    k = r.randrange(5)
    if k == 0:
        s = r.choice([" ", ", ", "\n"]).join(r.choice(pool) for _ in range(r.randint(4, 20)))
        sep = r.choice(["\n", "\nAgain: "])
        return s, sep + sep.join([s] * r.randint(1, 2))
    if k in (1, 2):
        ks = r.sample(CODEWORDS + NAMES, r.randint(3, 12))
        kv = [(x, digits(r, 2, 5) if k == 2 or r.random() < 0.5 else r.choice(pool)) for x in ks]
        f = r.choice(["{0} = {1}", "{0}: {1}", "{0} is {1}", "{0} has {1}", "the {0} room is {1}"])
        sep = r.choice(["; ", "\n", ", "])
        head, out = sep.join(f.format(*x) for x in kv), ""
        for _ in range(r.randint(1, 2)):
            r.shuffle(kv)
            out += "".join(sep + f.format(*x) for x in kv)
        return head, out
    if k == 3:
        s = " ".join(digits(r, 3, 9) for _ in range(r.randint(2, 6)))
        return s, " / ".join([""] + [s] * r.randint(1, 2))
    s = " ".join(sent(r) for _ in range(r.randint(1, 4)))
    return s, "\n" + s


def dense_groups(r):
    """headings with members, then each member again with its heading: the step from a function to its file, in few tokens"""
    heads = r.sample(r.choice([NAMES, CITIES, FILES, NOUN, CODEWORDS]), r.randint(2, 6))
    n = r.randint(1, 4)
    fn = r.random() < 0.5
    items, where = [], []
    for h in heads:
        ms = []
        for _ in range(r.randint(1, n)):
            x = r.choice(VERB) + "_" + r.choice(NOUN) if fn else r.choice(OBJ + ANIMAL)
            if x not in [w[0] for w in where]:
                where.append((x, h))
                ms.append(x)
        items.append((h, ms))
    a, b = r.choice([("{0}: {1}", ", "), ("File: {0}\n{1}", "\n"), ("{0} has {1}.", " and "), ("[{0}] {1}", " ")])
    text = r.choice(["\n", "\n\n", " "]).join(a.format(h, b.join(ms)) for h, ms in items if ms)
    f = r.choice(["{0} in {1}", "{0} -> {1}", "{0} is defined in {1}", "{0}: {1}"])
    r.shuffle(where)
    sep = r.choice(["\n", "; ", ". "])
    return text + "\n", "\n" + sep.join(f.format(*x) for x in where)


# ---------------------------------------------------------------- tools
def J(x):
    return json.dumps(x, ensure_ascii=False)


FILES = [f"{a}.{e}" for a in "notes todo report data config main readme log users prices plan draft index server client test".split() for e in ("txt", "md", "csv", "json", "c", "py")]
DIRS = ["", "docs/", "src/", "home/", "tmp/", "data/", "project/"]
EXPR = lambda r: f"{num(r, r.choice([1,2,3]))} {r.choice('+-*/')} {num(r, r.choice([1,2,3]))}"
PATH = lambda r: r.choice(DIRS) + r.choice(FILES)
WORDS = OBJ + ANIMAL + PLACE + CODEWORDS
PHRASE = lambda r: " ".join(r.sample(WORDS, r.randint(2, 3)))
ROOMS = ["kitchen", "bedroom", "office", "garage", "living room", "bathroom", "attic", "hall"]

# name variants, description, [(param name variants, type, description, generator)], user templates, result maker, answer template
TOOLS = [
    (["get_weather", "weather", "weather_lookup", "fetch_weather"], "Get the current weather of a city", [(["city", "location", "place"], "string", "City name", lambda r: r.choice(CITIES))],
     ["What is the weather in {0}?", "How is the weather in {0} today?", "Is it warm in {0}?", "Tell me the weather for {0}."], lambda r, a: {"temperature": r.randint(-9, 39), "condition": r.choice(WEATHER)}, "It is {temperature} degrees and {condition} in {0}."),
    (["calculator", "calc", "calculate", "eval_expression"], "Evaluate an arithmetic expression", [(["expression", "expr", "formula"], "string", "The expression", EXPR)],
     ["Calculate {0}.", "What is {0}? Use the tool.", "Please compute {0} with the calculator.", "Use the calculator for {0}."], lambda r, a: {"result": r.randint(2, 9999)}, "The result is {result}."),
    (["read_file", "open_file", "cat_file", "load_file"], "Read a file from disk", [(["path", "file", "filename"], "string", "Path of the file", PATH)],
     ["Read the file {0}.", "What is in {0}?", "Show me the content of {0}.", "Open {0} for me."], lambda r, a: {"content": sent(r)}, "The file {0} says: {content}"),
    (["web_search", "search", "search_web", "find_online"], "Search the web", [(["query", "q", "text"], "string", "Search words", PHRASE)],
     ["Search the web for {0}.", "Find {0} online.", "Look up {0} on the web.", "Search for {0}."], lambda r, a: {"title": PHRASE(r), "hits": r.randint(1, 99)}, "I found {hits} pages. The first one is: {title}."),
    (["get_time", "local_time", "current_time", "clock"], "Get the local time of a city", [(["city", "zone", "location"], "string", "City name", lambda r: r.choice(CITIES))],
     ["What time is it in {0}?", "Tell me the local time in {0}.", "Which time is it now in {0}?"], lambda r, a: {"time": f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}"}, "It is {time} in {0}."),
    (["convert_currency", "exchange", "currency_convert"], "Convert money between currencies", [(["amount", "value"], "number", "Amount", lambda r: r.randint(2, 999)), (["from", "source"], "string", "Currency", lambda r: r.choice(["euro", "dollar", "yen", "peso", "krona", "won"])), (["to", "target"], "string", "Currency", lambda r: r.choice(["pound", "rupee", "franc", "real", "lira", "yuan"]))],
     ["Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "Change {0} {1} into {2}."], lambda r, a: {"amount": r.randint(2, 9999)}, "{0} {1} is {amount} {2}."),
    (["set_timer", "timer", "start_timer"], "Start a timer", [(["minutes", "duration", "time"], "integer", "Minutes", lambda r: r.randint(1, 90))],
     ["Set a timer for {0} minutes.", "Start a timer of {0} minutes.", "Wake me in {0} minutes."], lambda r, a: {"status": "ok"}, "The timer is set for {0} minutes."),
    (["send_email", "email", "mail_send"], "Send an email", [(["to", "recipient"], "string", "Address", lambda r: r.choice(NAMES).lower() + "@" + r.choice(["mail", "post", "work", "home"]) + ".com"), (["subject", "title"], "string", "Subject", PHRASE)],
     ["Send an email to {0} about {1}.", "Write to {0} with the subject {1}.", "Email {0}: {1}."], lambda r, a: {"status": "sent"}, "The email to {0} was sent."),
    (["translate", "translate_text", "translator"], "Translate a word", [(["word", "text"], "string", "Word", lambda r: r.choice(WORDS)), (["language", "lang", "target"], "string", "Language", lambda r: r.choice(["French", "German", "Spanish", "Italian", "Dutch", "Polish", "Greek"]))],
     ["Translate {0} to {1}.", "How do you say {0} in {1}?", "What is {0} in {1}?"], lambda r, a: {"translation": "".join(r.choice(["la", "mo", "ri", "ta", "ne", "ko", "su"]) for _ in range(r.randint(2, 3)))}, "In {1}, {0} is {translation}."),
    (["get_stock_price", "stock_price", "quote"], "Get the price of a stock", [(["symbol", "ticker"], "string", "Ticker symbol", lambda r: "".join(r.choice("ABCDEFGHKLMNPRSTWXZ") for _ in range(r.choice([3, 4]))))],
     ["What is the stock price of {0}?", "How much is {0} stock?", "Give me the price of {0}."], lambda r, a: {"price": r.randint(2, 999)}, "The price of {0} is {price}."),
    (["create_event", "add_event", "calendar_add"], "Add an event to the calendar", [(["title", "name", "event"], "string", "Title", PHRASE), (["day", "date"], "string", "Day", lambda r: r.choice(DAYS))],
     ["Add the event {0} on {1}.", "Put {0} in my calendar for {1}.", "Plan {0} on {1}."], lambda r, a: {"status": "added"}, "I added {0} on {1}."),
    (["list_files", "ls", "list_directory"], "List the files of a directory", [(["directory", "dir", "path"], "string", "Directory", lambda r: r.choice(["docs", "src", "home", "tmp", "data", "project", "music", "photos"]))],
     ["List the files in {0}.", "Which files are in {0}?", "Show the directory {0}."], lambda r, a: {"files": r.sample(FILES, 3)}, "The directory {0} contains: {files}."),
    (["switch_light", "set_light", "light_control"], "Switch a light", [(["room", "place"], "string", "Room", lambda r: r.choice(ROOMS)), (["on", "state"], "boolean", "On or off", lambda r: r.random() < 0.5)],
     ["Turn {1} the light in the {0}.", "Please switch {1} the {0} light.", "Light {1} in the {0}."], lambda r, a: {"status": "ok"}, "The light in the {0} is {1}."),
    (["get_user", "lookup_user", "find_user"], "Look up a user by number", [(["user_id", "id", "number"], "integer", "User number", lambda r: r.randint(10, 9999))],
     ["Who is user {0}?", "Look up user {0}.", "Find the user with number {0}."], lambda r, a: {"name": r.choice(NAMES), "city": r.choice(CITIES)}, "User {0} is {name} from {city}."),
    (["run_command", "shell", "exec"], "Run a shell command", [(["command", "cmd"], "string", "Command line", lambda r: r.choice(["ls -l ", "cat ", "wc -l ", "rm ", "head ", "grep main "]) + PATH(r))],
     ["Run the command {0}", "Execute {0}", "Run this in the shell: {0}"], lambda r, a: {"exit_code": r.choice([0, 0, 0, 1])}, "The command ended with exit code {exit_code}."),
    (["book_table", "reserve_table", "restaurant_booking"], "Book a table in a restaurant", [(["restaurant", "place"], "string", "Restaurant", lambda r: "The " + r.choice(ADJ).capitalize() + " " + r.choice(ANIMAL).capitalize()), (["people", "guests"], "integer", "Number of people", lambda r: r.randint(1, 12))],
     ["Book a table at {0} for {1} people.", "Reserve {0} for {1} people.", "I want a table for {1} at {0}."], lambda r, a: {"status": "booked"}, "Your table at {0} for {1} people is booked."),
    (["get_distance", "distance", "route_length"], "Distance between two cities", [(["from", "start", "origin"], "string", "City", lambda r: r.choice(CITIES)), (["to", "end", "destination"], "string", "City", lambda r: r.choice(CITIES))],
     ["How far is it from {0} to {1}?", "What is the distance from {0} to {1}?", "Give me the distance between {0} and {1}."], lambda r, a: {"km": r.randint(50, 9999)}, "It is {km} km from {0} to {1}."),
    (["play_music", "play_song", "music_player"], "Play a song", [(["song", "title", "track"], "string", "Song title", PHRASE)],
     ["Play {0}.", "Play the song {0}.", "I want to hear {0}."], lambda r, a: {"status": "playing"}, "Now playing {0}."),
]


def tool_schema(r, t):
    """(schema, tool name, parameter names) with names drawn from their variants"""
    name = r.choice(t[0])
    pn = []
    for p in t[2]:
        c = [x for x in p[0] if x not in pn]
        pn.append(r.choice(c))
    props = {n: {"type": p[1], "description": p[2]} for n, p in zip(pn, t[2])}
    return {"type": "function", "function": {"name": name, "description": t[1], "parameters": {"type": "object", "properties": props, "required": pn}}}, name, pn


def tool_chat(r, rounds=1):
    """messages of a conversation with tools, and what its last call was (or that none was needed)"""
    n = r.choice([1, 2, 2, 3, 3, 4])
    ts = r.sample(range(len(TOOLS)), n)
    sch = [tool_schema(r, TOOLS[i]) for i in ts]
    w = r.randrange(n)
    t, (_, name, pn) = TOOLS[ts[w]], sch[w]
    sysm = dict(role="system", content=r.choice(["You are a helpful assistant.", "You are a helpful assistant.", "", "Use the tools when needed.", "You are an assistant with tools."]), tools=[x[0] for x in sch])
    ms = [sysm]
    if r.random() < 0.18:  # no tool is needed
        q, a, sh, th = (fact if r.random() < 0.7 else lambda r: smalltalk(r))(r)
        ms += [dict(role="user", content=q), dict(role="assistant", content=a, reasoning=th + " No tool is needed.")]
        return ms, dict(kind="none", short=sh)
    info = None
    for k in range(rounds or 1):
        if k:
            w = r.randrange(n)
            t, (_, name, pn) = TOOLS[ts[w]], sch[w]
        vals = [p[3](r) for p in t[2]]
        shown = [("on" if v else "off") if isinstance(v, bool) else v for v in vals]
        q = r.choice(t[3]).format(*shown)
        if r.random() < 0.12:
            q = r.choice(["Please help me. ", "Hello! ", "I need something. "]) + q
        args = dict(zip(pn, vals))
        ms += [dict(role="user", content=q), dict(role="assistant", content="", reasoning=f"I need the tool {name}.", calls=[(name, args)])]
        res = t[4](r, vals)
        d = {k: (", ".join(v) if isinstance(v, list) else v) for k, v in res.items()}
        ans = t[5].format(*shown, **d)
        ms += [dict(role="tool", content=J(res)), dict(role="assistant", content=ans, reasoning="I have the tool result. I answer the user.")]
        info = dict(kind="call", name=name, args=args, answer=ans)
    return ms, info


# ---------------------------------------------------------------- code
VERB = "get set add find make read write parse print count load save check sort update remove merge split copy open".split()
NOUN = "user file line node item list value token name key page row table buffer index score price word color point".split()
PY = [("def add(a, b):", "    return a + b"), ("def sub(a, b):", "    return a - b"), ("def mul(a, b):", "    return a * b"), ("def square(x):", "    return x * x"), ("def double(x):", "    return 2 * x"),
      ("def half(x):", "    return x / 2"), ("def is_even(n):", "    return n % 2 == 0"), ("def is_odd(n):", "    return n % 2 == 1"), ("def maximum(a, b):", "    return a if a > b else b"),
      ("def minimum(a, b):", "    return a if a < b else b"), ("def negate(x):", "    return -x"), ("def absolute(x):", "    return x if x >= 0 else -x"), ("def first(items):", "    return items[0]"),
      ("def last(items):", "    return items[-1]"), ("def total(items):", "    return sum(items)"), ("def length(items):", "    return len(items)"), ("def reverse(text):", "    return text[::-1]"), ("def upper(text):", "    return text.upper()"),
      ("def factorial(n):", "    return 1 if n == 0 else n * factorial(n - 1)"), ("def cube(x):", "    return x * x * x"), ("def average(items):", "    return sum(items) / len(items)"), ("def is_empty(items):", "    return len(items) == 0"),
      ("def contains(items, x):", "    return x in items"), ("def join(words):", "    return \" \".join(words)"), ("def increment(x):", "    return x + 1"), ("def decrement(x):", "    return x - 1")]
CC = [("int add(int a, int b) {", "    return a + b;\n}"), ("int sub(int a, int b) {", "    return a - b;\n}"), ("int mul(int a, int b) {", "    return a * b;\n}"), ("int square(int x) {", "    return x * x;\n}"), ("int is_even(int n) {", "    return n % 2 == 0;\n}"),
      ("int max(int a, int b) {", "    return a > b ? a : b;\n}"), ("int min(int a, int b) {", "    return a < b ? a : b;\n}"), ("int negate(int x) {", "    return -x;\n}"), ("double half(double x) {", "    return x / 2.0;\n}"),
      ("void swap(int *a, int *b) {", "    int t = *a;\n    *a = *b;\n    *b = t;\n}"), ("int first(const int *v) {", "    return v[0];\n}"), ("int is_zero(int x) {", "    return x == 0;\n}"),
      ("int sum(const int *v, int n) {", "    int s = 0;\n    for (int i = 0; i < n; i++)\n        s += v[i];\n    return s;\n}"), ("int main(void) {", "    printf(\"Hello, world!\\n\");\n    return 0;\n}"),
      ("void zero(int *v, int n) {", "    for (int i = 0; i < n; i++)\n        v[i] = 0;\n}"), ("int cube(int x) {", "    return x * x * x;\n}")]
REN = {"a": "abcpqmuxy", "b": "bcdyqnvwz", "x": "xyzatnv", "n": "nmkxi", "items": ["items", "values", "xs", "data", "nums"], "text": ["text", "s", "word", "name"], "v": ["v", "arr", "data", "p"], "words": ["words", "parts", "lines"]}
EXT = ["c", "py", "h", "js"]


def rename(r, head, body):
    """a function with other parameter names: (head, body, names)"""
    ids = [k for k in REN if re.search(rf"\b{k}\b", head.split("(", 1)[1])]
    used, m = set("t i s".split()) if "int " in head else set(), {}
    for k in ids:
        c = [x for x in REN[k] if x not in used]
        m[k] = r.choice(c) if r.random() < 0.7 else (k if k not in used else c[0])
        used.add(m[k])
    sub = lambda s: re.sub(r"\b(" + "|".join(ids) + r")\b", lambda q: m[q.group(1)], s) if ids else s
    h0, h1 = head.split("(", 1)
    body = body.replace(h0.split()[-1] + "(", "\0(")
    return h0 + "(" + sub(h1), sub(body).replace("\0(", h0.split()[-1] + "("), tuple(m.values())


def code_item(r, split="train"):
    """(language, head, body) of a small function with drawn parameter names"""
    for _ in range(1000):
        lang = r.choice(["Python", "C"])
        i = r.randrange(len(PY if lang == "Python" else CC))
        h, b, key = rename(r, *(PY if lang == "Python" else CC)[i])
        if not key or crc_split((lang, i, key)) == split:
            return lang, h, b
    raise RuntimeError


CODE_Q = ["Complete this {0} function:\n{1}", "Complete the {0} code:\n{1}", "Write the body of this {0} function:\n{1}", "Finish this {0} function.\n{1}"]
WRITE_Q = ["Write a {0} function {1}.", "Show me a {0} function {1}.", "Give me the {0} function {1}."]


def code_chat(r, split="train"):
    """complete a function, or write one by name"""
    lang, h, b = code_item(r, split)
    if r.random() < 0.6:
        return r.choice(CODE_Q).format(lang, h), h + "\n" + b, b, f"I complete the {lang} function."
    nm = h.split("(")[0].split()[-1]
    return r.choice(WRITE_Q).format(lang, nm), h + "\n" + b, b, f"The function {nm} in {lang}."


def one_liner(r, ext, name):
    """a small function called name for a file listing"""
    lang = "Python" if ext in ("py",) else "C"
    h, b, _ = rename(r, *r.choice(PY if lang == "Python" else CC[:12]))
    if ext == "js":
        return f"function {name}(x) {{\n    return x + {r.randint(1, 9)};\n}}"
    h0, h1 = h.split("(", 1)
    old = h0.split()[-1]
    h = h0[: len(h0) - len(old)] + name + "(" + h1
    return h + "\n" + re.sub(rf"(?<![.\w]){old}\(", name + "(", b)


ASK_FILE = ["In which file is the function {0} defined?", "Which file defines {0}?", "Where is {0} defined?", "In which file can I find {0}?", "Find the file with the function {0}."]


def multifile_turns(r, asks, big=False):
    """turns: one listing, then several questions about it"""
    p, where = listing_of_files(r, None, big)
    fs = r.sample(list(where), min(asks, len(where)))
    out = [(r.choice(ASK_FILE).format(q), f"The function {q} is defined in {where[q]}.", where[q], f"I look for {q}. It is in the file {where[q]}.") for q in fs]
    q = out[0][0]
    return [((p + "\n" + q) if r.random() < 0.7 else (q + "\n\n" + p),) + out[0][1:]] + out[1:]


def file_index(r):
    """turns: names of functions under names of files, then the file of each function.  Where a line says its file itself the answer
    is only to be found; where it does not, the name above has to be carried to the line first"""
    p, where = listing_of_files(r, r.randint(2, 5), r.random() < 0.4, r.choice([0.0, 0.0, 0.3, 0.6]))
    names = r.sample(list(where), min(len(where), 8))
    turns = [(f"Where is {q}?", f"In {where[q]}", where[q], "") for q in names]
    return [(p + "\n" + turns[0][0],) + turns[0][1:]] + turns[1:]


def multifile(r, n_files=None, big=False):
    """one listing, one question"""
    text, where = listing_of_files(r, n_files, big)
    q = r.choice(list(where))
    ask = r.choice(ASK_FILE).format(q)
    p = (text + "\n" + ask) if r.random() < 0.7 else (ask + "\n\n" + text)
    return p, f"The function {q} is defined in {where[q]}.", where[q], f"I look for {q}. It is in the file {where[q]}."


def listing_of_files(r, n_files, big, noted=None):
    """text of a few files, {function: file}; noted: names of functions alone, this share of them followed by their file"""
    n = n_files or r.randint(2, 5)
    names, stems = set(), r.sample(NOUN + VERB, n)
    files, where = [], {}
    for s in stems:
        e = r.choice(EXT[:2] if r.random() < 0.8 else EXT)
        fn = r.choice(["", "", "src/", "lib/"]) + s + ("s." if r.random() < 0.3 else ".") + e
        fs = []
        for _ in range(r.randint(1, 4 if big else 2)):
            nm = r.choice(VERB) + "_" + r.choice(NOUN)
            if nm in names:
                continue
            names.add(nm)
            where[nm] = fn
            fs.append(one_liner(r, e, nm) if noted is None else f"    {nm}" + (f" in{CUT} {fn}{CUT}" if r.random() < noted else ""))
        files.append(f"File: {fn}\n" + ("\n\n" if noted is None else "\n").join(fs) + "\n")
    return "\n".join(files), where


LISTED = re.compile(r"(?:^|｜>)File: (\S+)$|^(?:def|int|double|void|function|   ) (\w+_\w+)", re.M)
TOLD = re.compile(r"(\b[a-z]+_[a-z]+\b)|(?:</think>In|It is in the file|is defined in)( \S+?)(?=\.?(?:</think>|<｜end))")


def under(text):
    """where functions are listed, and where they are named before an answer tells their files: [(end of the name, its file)],
    [(end of the name, its file, end of the name in the listing, first and end of the file's name in the answer)]"""
    file, listed, ends = None, [], {}
    for m in LISTED.finditer(text):
        if m[1]:
            file = m[1]
        elif file:
            listed.append((m.end(2), file))
            ends[m[2]] = m.end(2)
    name, told = None, []
    for m in TOLD.finditer(text):
        if m[1]:
            name = m
        elif name and name[1] in ends:
            told.append((name.end(1), m[2].strip(), ends[name[1]], m.start(2), m.end(2)))
    return listed, told


# ---------------------------------------------------------------- documents
SYS = ["You are a helpful assistant.", "You are dsv4-nano.", "Answer briefly.", "You are a friendly assistant.", "Be polite and answer the question."]


def turn(r, split="train"):
    """any question that needs no context"""
    k = r.choices(["fact", "arith", "small", "unk", "list", "repeat", "code", "story"], [9, 6, 2.5, 0.4, 1.6, 1.2, 1.5, 1.0])[0]
    return dict(fact=lambda: fact(r, split), arith=lambda: arith(r, split)[:4], small=lambda: smalltalk(r), unk=lambda: unknown(r), list=lambda: listing(r, split), repeat=lambda: repeat(r),
                code=lambda: code_chat(r, split), story=lambda: chat_story(r))[k]()


def wrap(r, turns, thinking, sysp=0.25):
    """a conversation from (question, answer, short, reasoning) turns, encoded; sysp: share with a system message"""
    ms = []
    if r.random() < sysp:
        ms.append(dict(role="system", content=r.choice(SYS)))
    for q, a, s, t in turns:
        ms += [dict(role="user", content=q), dict(role="assistant", content=a, reasoning=t)]
    return encode(ms, thinking, r.choice([50, 75, 50, 75, 25, 100]), generation_prompt=False)


CUT = "\0"  # in a document: what comes before is a prompt, no target
PREAMBLE = tool_preamble([]).split("### Available")[0]


def doc(r, mix, max_words):
    """one training document (text) of a kind drawn from mix {kind: weight}"""
    return doc_of(r, r.choices(list(mix), list(mix.values()))[0], max_words)


def doc_of(r, k, max_words):
    """one training document of kind k; max_words bounds the filler of needle documents"""
    th = r.random() < 0.35
    if k == "fact":
        return wrap(r, [fact(r)], r.random() < 0.25)
    if k == "arith":
        return wrap(r, [arith(r)[:4]], r.random() < 0.85)
    if k == "multi":
        n = r.choice([2, 3, 4])
        ts = [turn(r) for _ in range(n)]
        if r.random() < 0.35:
            a, b, c, d, e = memory_chat(r)
            i = r.randrange(n)
            j = r.randrange(i, n)
            ts = ts[:i] + [(a, b, "", "The user tells me something.")] + ts[i:j] + [(c, d, e, "The user said it before. " + d)]
        return wrap(r, ts, th)
    if k == "lists":
        return wrap(r, [listing(r) for _ in range(r.randint(1, 4))], r.random() < 0.1)
    if k == "single":
        return wrap(r, [turn(r)], th)
    if k == "repeat":
        return wrap(r, [repeat(r) for _ in range(r.randint(1, 3))], th)
    if k in ("tool", "calls"):
        # "calls" is the same conversation without the fixed part of the preamble: more calls a token
        ms, _ = tool_chat(r, r.choice([1, 1, 2, 2, 3, 4]) if k == "tool" else r.choice([1, 2, 3]))
        if r.random() < 0.15 and ms[-1].get("content"):
            q, a, s, t = fact(r)
            ms += [dict(role="user", content=q), dict(role="assistant", content=a, reasoning=t)]
        text = encode(ms, th, r.choice([50, 75, 50, 75, 25, 100]), generation_prompt=False)
        return text if k == "tool" else text.replace(PREAMBLE, "")
    if k == "needle":
        return wrap(r, needle_turns(r, r.randint(20, max_words), r.choice([1, 1, 2, 3, 4, 5])), r.random() < 0.25, 0.1)
    if k == "story":
        return BOS + " ".join(story(r) if r.random() < 0.7 else sent(r) for _ in range(r.choice([1, 1, 2, 4]))) + EOS
    if k == "code":
        if r.random() < 0.5:
            return BOS + "\n\n".join("\n".join(code_item(r)[1:]) for _ in range(r.randint(1, 4))) + EOS
        return wrap(r, [code_chat(r)], th)
    if k == "files":
        return wrap(r, multifile_turns(r, r.choice([1, 2, 3, 4]), r.random() < 0.3), r.random() < 0.25, 0.1)
    if k == "index":
        return wrap(r, file_index(r), False, 0.0)
    if k == "copy":
        return BOS + CUT.join(dense_copy(r) if r.random() < 0.75 else dense_groups(r)) + EOS
    if k == "facttext":
        return BOS + " ".join(r.choice(FACT_KIND[r.choices(KINDS, KWTS)[0]])[3] for _ in range(r.randint(3, 8))) + EOS
    raise KeyError(k)
