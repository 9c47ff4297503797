"""Whether two questions, in different words, ask for the same thing.

An embedding cannot tell: "5 mg" and "10 mg", "may" and "may not", a child and an adult hardly move it. So what carries the meaning is
compared word by word, and what the lists below do not know as a synonym or as empty makes two questions different. That loses
paraphrases and lets nearly nothing false through (``benchmarks/verified_matches.py`` counts both); the similarity of the embeddings is
asked besides.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from retrieval.text import NO_DENIAL, content_words, detect_lang, keeps_form


def _list(text: str) -> list[str]:
    return text.split()


# Words that are names or letters where they stand in capitals ("US", "WHO", "vitamin A"), or beside such words ("in May", "a will").
_NAME = "`"
_EN_NAMES = re.compile(
    r"\b[A-Z]{2,}\b|(?<=\w )(?:A|May|Will)\b"
    r"|(?i:(?<=in )|(?<=of )|(?<=by )|(?<=until )|(?<=since )|(?<=after )|(?<=before )|(?<=next )|(?<=last ))[mM]ay\b|\b[mM]ay(?= \d)"
    r"|(?i:(?<=\ba )|(?<=\bthe )|(?<=\bmy )|(?<=\bhis )|(?<=\bher ))will\b"
    r"|(?i:(?<=vitamin )|(?<=hepatitis )|(?<=type )|(?<=group )|(?<=class )|(?<=plan )|(?<=grade )|(?<=stage )|(?<=phase )|(?<=part )"
    r"|(?<=section )|(?<=article )|(?<=schedule )|(?<=title )|(?<=annex ))[aAI]\b"
)
_EN_GROUPS = "child adult elderly pregnant male female"
# Tokens that begin with a mark: # who, how much, how often; ? what is asked for.
_EN_PHRASES = [
    (r"n['’]t\b", " not"),
    (r"\b(what|who|where|when|why|how|it|that|there|he|she)['’]s\b", r"\1 is"),
    # The client's bank is not the client of the bank.
    (r"['’]s\b|(?<=s)['’](?!\w)", " #of "),
    (r"\bcannot\b", "can not"),
    (r"\b(what|which|at what) (time|hours?)\b|\bwhat are the (times|hours)\b|\bwhen\b", " ?time "),
    (r"\b(for )?how (long|much time)\b|\bwhat is the duration\b", " ?duration "),
    (r"\bhow (often|frequently|many times)\b", " ?often "),
    (r"\bhow many\b|\bwhat number of\b|\bwhat is the number of\b", " ?count "),
    (r"\b(?:what|how much) (?:do|does|must|will|would) (?:(?:i|we|one) (?:have to )?pay|(?:you|they) (?:have to )?charge)\b", " ?cost "),
    (r"\b(what|how much|which)( \w+)? (does|do|is|are|will|would)\b(?=.*\b(cost|costs|price|fee)\b)", " "),
    (r"\bhow much\b(?=.*\b(cost|costs|price|fee)\b)", " "),
    (r"\b(costs?|prices?|fees?|priced)\b", " ?cost "),
    (r"\bhow much\b", " ?much "),
    (r"\b(where|in which place|at which place|what place|at what place)\b", " ?place "),
    (r"\b(who|whom|which person|what person)\b", " ?person "),
    (r"\b(why|for what reason|what is the reason)\b", " ?reason "),
    (r"\b(how|in what way|which way)\b", " ?way "),
    (r"\b(at most|no more than|not more than|max|maximum|maximal|highest|largest|upper limit)\b", " #max "),
    (r"\b(at least|no less than|not less than|min|minimum|minimal|lowest|smallest)\b", " #min "),
    (r"\b((?:per|a|each|every) day|daily)\b", " #daily "),
    (r"\b((?:per|an|each|every) hour|hourly)\b", " #hourly "),
    (r"\b((?:per|a|each|every) week|weekly)\b", " #weekly "),
    (r"\b((?:per|a|each|every) month|monthly)\b", " #monthly "),
    (r"\b((?:per|a|each|every) year|yearly|annual|annually)\b", " #yearly "),
    (r"\b(child|children|kids?|paediatric|pediatric)\b", " #child "),
    (r"\b(adults?|grown-ups?)\b", " #adult "),
    (r"\b(elderly( people| patients| persons)?|seniors?|older (people|patients|persons|adults))\b", " #elderly "),
    (r"\b(pregnant|pregnancy)( women| patients)?\b", " #pregnant "),
    (r"\b(men|man|males?)\b", " #male "),
    (r"\b(women|woman|females?)\b", " #female "),
    # Elsewhere the place tells who does it and to whom it is done: "who may visit children" and "whom may children visit".
    (rf"\b(?:for|of|in|during)\s+(?:(?:an?|the|all)\s+)?#({_EN_GROUPS.replace(' ', '|')})\b", r" #for\1 "),
    # Who needs a nurse is not whom a nurse needs.
    (r"(\?person(?:\s+[#\w]+){0,4}?|\bwhat)\s+needs?\b(?!\s+to\b)", r"\1 require"),
    (r"\b(must|have to|has to|needs?|necessary|mandatory|compulsory)\b", " #must "),
    (r"\b(should|ought to|advisable)\b", " #should "),
    (r"\b(can|could|will|would) (you|somebody|someone)( please)? (tell|explain to|inform|show) me\b", " "),
    (r"^\s*(please )?(tell|inform|show) me\b|\bplease (tell|inform|show) me\b", " "),
    (r"\b(do you (happen to )?know|i (would like|want) to know)\b", " "),
    (r"^\s*(?:can|could|may|might|is it (?:allowed|possible|permitted|ok|okay)(?: for (\w+))? to|am i allowed to|are (\w+) allowed to)\b",
     r" ?may \1 \2 "),
    # "I" is said by the rest, unless who or what is asked for could be doing it instead.
    (r"(\?person|\bwh(?:at|ich)(?!\s+(?:documents?|papers?|forms?|do\s+i\s+#must|#must\s+i)\b))"
     r"((?:\s+[#\w]+){0,3}?\s+(?:#must|#should|[a-z]+))\s+i\b", r" \1\2 #i "),
    (r"\b((?:pa(?:y|id)|ask|call|sign|send|search|charge)(?:s|ed|ing)?) for\b", r"\1 #for "),
]  # fmt: skip
_EN_SAME = {
    word: group.split()[0]
    for group in (
        "begin start commence",
        "finish end",
        "buy purchase",
        "get obtain receive",
        "doctor physician",
        "drug medicine medication",
        "dose dosage",
        "big large",
        "rule regulation",
        "car vehicle",
        "document paper",
        "employe employee staff",
        "customer client",
        "salary wage",
        "illness disease sickness",
        "hand submit",
    )
    for word in group.split()
}
_EN_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        _list(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
            "nineteen twenty"
        )
    )
} | {"once": "1 times", "twice": "2 times", "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "hundred": "100"}
_EN_NEGATIONS = frozenset(_list("not no never without neither nor none nobody nothing"))
# Words between which the order of two things matters, and which change what is meant.
_EN_KEPT = frozenset(
    _list(
        "before after until since from to than over under above below between during while if only also both or into by but his her "
        "he she him they their them me my we us our you your whose was were did had"
    )
)
_EN_EMPTY = frozenset(_list("please exactly actually there may might"))
# A participle after the first was done to somebody, after the second by somebody; what begins a clause ends what was before it.
_EN_VOICES = (
    dict.fromkeys(_list("be am is are was were been being"), "#passive")
    | dict.fromkeys(_list("have has had having"), "#perfect")
    | dict.fromkeys(_list("if that which because whether until unless while after before since ?person ?time ?place ?reason ?way"), "")
)
# What is required must be; who requires it need not.
_EN_DUTIES = {"required": "#must", "obliged": "#must", "recommended": "#should", "advised": "#should"}
_EN_DETERMINERS = frozenset(_list("a an the this that these those my our your his her their every each any no"))
# Those that do not end in -ed; the second ones are infinitives as well.
_EN_PARTICIPLES = frozenset(
    _list(
        "paid sold told held kept sent spent lent built made given taken seen known shown written driven eaten drawn grown thrown blown "
        "flown worn torn born borne sworn chosen frozen stolen spoken broken woken forgotten forgiven forbidden hidden ridden done begun "
        "drunk won lost left meant met felt dealt slept swept bought brought thought taught caught sought fought found bound hung struck "
        "stuck dug fed led bred said laid heard understood withheld withdrawn overdrawn undertaken mistaken overseen overtaken repaid "
        "unpaid prepaid shot beaten bitten shaken proven freed"
    )
)
_EN_UNCHANGED = frozenset(_list("put cut set let hit hurt shut split spread read cast broadcast bet bid burst upset reset quit run"))

_ZH_PHRASES = [
    (r"请问|麻烦|想问(?:一下|问)?|问一下|我想(?:知道|了解)(?:一下)?|想(?:知道|了解)|告诉我|咨询一下|能否告诉|你好|您好", ""),
    (r"(?:能不能|可不可以|可否|能否|行不行|是否可以|可以(?=.*吗)|能够?(?=.*吗))", "〔可否〕"),
    (r"(?:需不需要|要不要|是否需要|需要(?=.*吗)|要(?=.*吗))", "〔须否〕"),
    (r"(?:是不是|是否)", "〔是否〕"),
    (r"(?:有没有)", "〔有无〕"),
    (r"(?:需要?|要)?(?:花|付|交)?(?:多少钱|多少费用|多少元)|怎么收费|如何收费", "〔钱〕"),
    (r"的?(?:费用|价格|收费|价钱)(?:是|为)?(?:多少|怎样|如何|几何)?|费(?:是|为|要)?多少", "〔钱〕"),
    (r"(?:因)?为(?:什么|何)|什么原因", "〔因〕"),
    (r"(?:需要?|要|须)?(?:什么|哪些)(?!时候|时间|地方|人|原因)", "〔何〕"),
    (r"(?:在)?(?:什么时候|何时|几点钟?|什么时间|哪个时间)|的?时间是(?:什么时候|几点|何时)", "〔时〕"),
    (r"(?:需要?|要|有)?(?:多久|多长时间|多少时间)", "〔久〕"),
    (r"(?:在|到|去)?(?:哪里|哪儿|何处|什么地方)", "〔处〕"),
    (r"怎么样|怎么|如何|怎样", "〔法〕"),
    (r"由?(?:谁|哪位|什么人|哪个人)", "〔谁〕"),
    (r"最多|最大|最高|上限|不(?:能|得|可)?超过|至多", "〔上限〕"),
    (r"最少|最小|最低|下限|至少|不(?:能|得|可)?少于", "〔下限〕"),
    (r"儿童|小孩子?|孩子|小朋友|患儿", "〔儿童〕"),
    (r"成年人|成人|大人", "〔成人〕"),
    (r"老年人|老人家?|长者", "〔老人〕"),
    (r"孕妇|怀孕(?:的?(?:女性|妇女|期间))?|妊娠期?", "〔孕〕"),
    (r"男(?:性|士|人|的)?", "〔男〕"),
    (r"女(?:性|士|人|的)?", "〔女〕"),
    (r"每[天日]|(?<![零一二两三四五六七八九十百千第])一[天日](?=.{0,6}(?:几|〔多少〕|多少|[上下]限|次))", "〔每日〕"),
    (r"每(?:周|星期)|(?<![零一二两三四五六七八九十百千第])一(?:周|星期)(?=.{0,6}(?:几|〔多少〕|多少|[上下]限|次))", "〔每周〕"),
    (r"每个?月|(?<![零一二两三四五六七八九十百千第])一个月(?=.{0,6}(?:几|〔多少〕|多少|[上下]限|次))", "〔每月〕"),
    (r"每年|(?<![零一二两三四五六七八九十百千第])一年(?=.{0,6}(?:几|〔多少〕|多少|[上下]限|次))", "〔每年〕"),
    (r"必须|务必|一定要|得要", "〔必须〕"),
    (r"应该|应当|建议", "〔应当〕"),
    (r"医生|大夫|医师", "医"),
    (r"药物|药品", "药"),
    (r"服用|口服|吃", "服"),
    (r"购买", "买"),
    (r"用量", "剂量"),
    (r"办理", "办"),
    (r"(?:是|为)?多少", "〔多少〕"),
    (r"几(?=[次天个位名人片粒])", "〔多少〕"),
    (r"(?<=[限时处]〕)(?:可以|能够?)|在(?=[\d一两三四五六七八九十])", ""),
]  # fmt: skip
# Outside of words that only look like one: 没收 is not 不收.
_ZH_NEGATIONS = re.compile(rf"(?P<kept>{NO_DENIAL.pattern})|不|没有?|无|未|非|勿|别(?!人|的)|禁止|严禁")
_ZH_NUMBER = re.compile(
    r"(?:\d+(?:\.\d+)?|半|[零〇一二两三四五六七八九十百千万]+)(?=[岁周天日月年次小时分钟片粒毫克升元米公斤人名位层楼倍度级%％个])"
)
_ZH_EMPTY = re.compile(r"^我们?(?![国方司院军党行校市省])|[的吗呢啊呀吧么您是?？。,，!！、\s]|了(?!解)|一下|具体|到底|究竟")
_ZH_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_ZH_PLACES = {"十": 10, "百": 100, "千": 1000, "万": 10_000}
_NOT = "不"
# Signs that change a number or a name: below zero, more than, C++, €.
_SIGN = r"[^\w\s.,:;?!'\"“”‘’()\[\]{}〔〕。，、！…·/–—-]|(?<!\w)-(?=\s?[\d.{])|(?<=\w)-(?=\W|$)|(?<=\d)[/:](?=\d)"
# What may stand at the beginning as well as at the end, by kinds: what is asked for, whether, at most, how often, for whom. Who does
# something and to whom it is done, "谁" and "什么" among them, is told by the place only.
_MOVABLE = [
    frozenset(_list(kind))
    for kind in (
        "?time ?duration ?often ?count ?cost ?much ?place ?reason ?way 〔钱〕 〔时〕 〔久〕 〔处〕 〔法〕 〔因〕 〔多少〕",
        "?may 〔可否〕 〔须否〕 〔是否〕 〔有无〕",
        "#max #min 〔上限〕 〔下限〕",
        "#hourly #daily #weekly #monthly #yearly 〔每日〕 〔每周〕 〔每月〕 〔每年〕",
        " ".join(f"#for{group}" for group in _list(_EN_GROUPS)),
        "#must #should 〔必须〕 〔应当〕",
    )
]


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a question says: its `words` in order, with numbers, negations and whom it is about; and what it asks for, which may stand
    anywhere in it."""

    lang: str
    words: tuple[str, ...]
    anywhere: frozenset[str]


def meaning(question: str) -> Meaning:
    """What `question` says, for `same`."""
    # Fractions and powers would run together with the digits before them.
    apart = "".join(f" ^{char}" if keeps_form(char) else char for char in question)
    text = unicodedata.normalize("NFKC", apart)
    lang = detect_lang(question)
    words = _chinese(text.casefold()) if lang == "zh" else _english(text)
    found = frozenset(words)
    # What a "not" belongs to is told by its place only, and of two of a kind which is which.
    alone = [kind for kind in _MOVABLE if len(found & kind) == 1 and sum(word in kind for word in words) <= 2]
    movable = frozenset[str]() if _NOT in found else frozenset[str]().union(*alone)
    return Meaning(lang, tuple(word for word in words if word not in movable), found & movable)


def same(one: Meaning, other: Meaning) -> bool:
    """Whether two questions ask for the same thing, as far as their words tell."""
    return one == other and bool(one.words or one.anywhere)


def _english(text: str) -> list[str]:
    text = _EN_NAMES.sub(lambda found: f" {found.group().strip()}{_NAME} ", text).casefold()
    for pattern, token in _EN_PHRASES:
        text = re.sub(pattern, token, text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    words: list[str] = []
    before = voice = ""
    tokens = re.findall(rf"[?#][a-z]+|\d+(?:[.,]\d+)*|[^\W\d_]+(?:-[^\W\d_]+)*{_NAME}?|{_SIGN}", text)
    for token in (part for each in tokens for part in _EN_NUMBERS.get(each, each).split()):
        voice = _EN_VOICES.get(token, voice)
        if voice == "#passive" and token in _EN_DUTIES:
            words.append(_EN_DUTIES[token])
        elif token in _EN_NEGATIONS:
            words.append(_NOT)
        elif token == "to" and words[-1:] == ["#must"]:
            pass
        elif token in _EN_KEPT or not token[0].isalpha() or token.endswith(_NAME):
            words.append(token)
        elif token not in _EN_EMPTY:
            for part in token.split("-"):
                for stem in content_words(part):
                    form = _formed(part, stem)
                    words += [_EN_SAME.get(token) or _EN_SAME.get(form) or form, *_said_of(part, stem, before, voice)]
        before = token
    return words


def _formed(word: str, stem: str) -> str:
    """The stem with what makes another word of it, -s, -ed and -ing aside: an operator is no operation, who insures not the insured."""
    shared = stem
    while not word.startswith(shared):
        shared = shared[:-1]
    ending = word[len(shared) :]
    # Cancel(l)ed, polic(y).
    if ending[:1] == "y" or (stem.endswith(ending[:1]) and ending[:1] not in "aeiou"):
        ending = ending[1:]
    ending = re.sub(r"e?(?:(?<!s)s|e?d|ing)?$", "", ending).replace("y", "i")
    return f"{stem}+{ending}" if ending else stem


def _said_of(word: str, stem: str, before: str, voice: str) -> list[str]:
    """What a participle says besides its stem: the tenant who evicts, has evicted, is evicted; the treated, not the treating hospital."""
    known = "" if before in _EN_DETERMINERS else voice
    if word in _EN_UNCHANGED:
        return [known] if known else []
    if before == "#must" and word.endswith("ing") and stem != word:
        return ["#passive"]
    return [known or "#past"] if word in _EN_PARTICIPLES or (word.endswith("ed") and stem != word) else []


def _chinese(text: str) -> list[str]:
    for pattern, token in _ZH_PHRASES:
        text = re.sub(pattern, token, text)

    def number(found: re.Match[str]) -> str:
        return f"{{{_value(found.group())}}}"

    text = _ZH_NEGATIONS.sub(lambda found: found["kept"] or _NOT, _ZH_NUMBER.sub(number, text))
    return re.findall(rf"〔[^〕]*〕|\{{[^}}]*\}}|[a-z]+|\d+(?:\.\d+)?|[^\W_]|{_SIGN}", _ZH_EMPTY.sub("", text))


def _value(numeral: str) -> str:
    """A Chinese or Arabic numeral as Arabic digits."""
    if numeral[0].isdigit():
        return f"{float(numeral):g}"
    if numeral == "半":
        return "0.5"
    total = part = digit = 0
    for char in numeral:
        if char in _ZH_DIGITS:
            digit = _ZH_DIGITS[char]
        elif char == "万":
            total, part, digit = (total + part + digit) * _ZH_PLACES[char], 0, 0
        else:
            part, digit = part + (digit or 1) * _ZH_PLACES[char], 0
    return str(total + part + digit)
