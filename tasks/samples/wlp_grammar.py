"""Grammar of the bundled WLP sample: how lab-protocol sentences are put together.

A rule is text with `<SYMBOL>`s to expand and `{text|Type}` around an entity. `@3` at the end
of a rule gives it three times the weight of its neighbours. `verb~ed` and `verb~ing` are
inflected afterwards. Symbols that are not here are in the lexicon.

Three conventions make the task more than looking words up, and all three are regular
enough to be learned: a word's type depends on its place ("{plate|Action} the {cells|Reagent}"
but "the {plate|Location}"); an amount is a `Size` where it describes a container; and in
clauses of reason or reference (`ASIDE`) nothing is an entity, whatever the words.
"""

from __future__ import annotations


def _choices(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


GRAMMAR: dict[str, tuple[str, ...]] = {
    "SENTENCE": (
        "<OPENING> <CLAUSE> <TRAILER>. @9",
        "<OPENING> <CLAUSE> and <CLAUSE>. @5",
        "<OPENING> <CLAUSE>, then <CLAUSE> <TRAILER>. @3",
        "<OPENING> <PASSIVE> <TRAILER>. @4",
        "<OPENING> repeat {<N_METHOD>|Method} {<TIMES>|Numerical}.",
        "<HEADING>",
        "<NOTE>. @0.6",
    ),
    "OPENING": (
        " @14",
        "<INTRO>, @2.5",
        "{<ADVERB>|Modifier} @2",
        "after {<TIME>|Time},",
        "using a <TOOL_NP>,",
        "in a <VESSEL_NP>, @1.5",
        "to {<V_CHECK>|Action} the {<MEASURE>|Measure-Type},",
        "when <ASIDE_EVENT>, @0.7",
        "for each <VESSEL_NP>, @0.7",
    ),
    "TRAILER": (
        " @18",
        "<ASIDE> @4",
        "to {<V_HOLD>|Action} <THING>",
        "without {<V_MIX>~ing|Action} <THING>",
        "before {<N_METHOD>|Method}",
        "until <THING_IS> {<QUALITY>|Modifier}",
        "while {<V_MIX>~ing|Action} {<ADVERB>|Modifier}",
        "to avoid {<V_HOLD>~ing|Action} <THING> @0.6",
    ),
    "CLAUSE": (
        "{<V_ADD>|Action} <DOSE> <INTO> <VESSEL_THE> @6",
        "{<V_ADD>|Action} <DOSE> to <THING> @3",
        "{<V_HOLD>|Action} <THING> <CONDITION> @6",
        "{<V_HOLD>|Action} <CONDITION> @2",
        "{<V_MIX>|Action} {<ADVERB>|Modifier} @1.5",
        "{<V_MIX>|Action} <THING> by {<V_MIX>~ing|Action} {<TIMES>|Numerical}",
        "{<V_MIX>|Action} <THING> with <DOSE> @2",
        "{<V_SPIN>|Action} <THING> <SPIN_CONDITION> @3",
        "{<V_SPIN>|Action} <SPIN_CONDITION> @1.5",
        "{<V_REMOVE>|Action} <THING> <FROM_VESSEL> @3",
        "{<V_REMOVE>|Action} {<AMOUNT>|Amount} of <THING> <FROM_VESSEL>",
        "{<V_REMOVE>|Action} <THING> with a <TOOL_NP> @1.5",
        "{<V_WASH>|Action} <THING> {<TIMES>|Numerical} with <DOSE> @3",
        "{<V_WASH>|Action} <VESSEL_THE> with <DOSE> @2",
        "{<V_WASH>|Action} <THING> in <DOSE> <CONDITION> @1.5",
        "{<V_WASH>|Action} with <BARE> and {<V_REMOVE>|Action} {<MENTION>|Mention}",
        "{<V_CHECK>|Action} the {<MEASURE>|Measure-Type} of <THING> @2",
        "{<V_CHECK>|Action} the {<MEASURE>|Measure-Type} with a <TOOL_NP>",
        "{adjust|Action} the {pH|Measure-Type} of <THING> to {<PH>|pH} with <DOSE> @0.9",
        "{grow|Action} <THING> to an {<OPTICAL>|Measure-Type} of {<READING>|Generic-Measure} @0.8",
        "{<V_MAKE>|Action} <THING> in <DOSE> @3",
        "{<V_LABEL>|Action} {<COUNT>|Numerical} <QUALITY_OPT> {<VESSEL>s|Location} @1.2",
        "{<V_LABEL>|Action} a {<RATIO>|Generic-Measure} dilution of <THING> in <REAGENT_NP>",
        "{<V_SEAL>|Action} <VESSEL_THE> with <SEAL_NP> @2",
        "{remove|Action} <SEAL_NP> from <VESSEL_THE> @0.7",
        "{<V_PLACE>|Action} <VESSEL_THE> in a <MACHINE_NP> @2",
        "{<V_PLACE>|Action} <THING> onto <VESSEL_THE> @1.5",
        "{<V_PHRASAL>|Action} <THING> @1.5",
        "{set|Action} the <MACHINE_NP> to {<TEMPERATURE>|Temperature} @0.7",
        "{set|Action} the <MACHINE_NP> to {<SPEED>|Speed} @0.6",
        "{perform|Action} <METHOD_NP> with <REAGENT_NP> @1.2",
        "{proceed|Action} to <METHOD_NP> @0.6",
        "let {<MENTION>|Mention} {stand|Action} <CONDITION> @0.8",
        "{<V_CUT>|Action} the <ORGAN_NP> of the <ORIGIN> and {<V_WASH>|Action} with <DOSE> @0.7",
    ),
    "PASSIVE": (
        "<THING_IS> {<V_HOLD>~ed|Action} <CONDITION> @3",
        "<THING_IS> {<ADVERB>|Modifier} {<V_WASH>~ed|Action} with <DOSE> @2",
        "<THING_IS> {<V_REMOVE>~ed|Action} <FROM_VESSEL> @1.5",
        "the {<MATERIALS>|Reagent} can be {<V_HOLD>~ed|Action} for up to {<TIME>|Time} @1.5",
        "<DOSE> is {<V_ADD>~ed|Action} to <VESSEL_THE> @2",
        "<VESSEL_THE> should be {<V_SEAL>~ed|Action} with <SEAL_NP> @1.2",
        "the {volume|Measure-Type} should be {<VOLUME>|Generic-Measure}",
        "the {<MATERIAL>|Reagent} should {reach|Action} <TARGET_VALUE>",
    ),
    "TARGET_VALUE": ("a {<MEASURE>|Measure-Type} of {<READING>|Generic-Measure}",),
    "HEADING": (
        "{<N_METHOD>|Method} of {<MATERIAL>|Reagent}",
        "day <DIGIT>: {<N_METHOD>|Method}",
        "<KIND> <LIQUID> (<INGREDIENTS>)",
        "{<REAGENT>|Reagent}: <INGREDIENTS>",
        "part <DIGIT>: {<V_MAKE>~ing|Action} the {<REAGENT>|Reagent}",
    ),
    "INGREDIENTS": (
        "<PART_OF_MIX>, <PART_OF_MIX>",
        "<PART_OF_MIX>, <PART_OF_MIX>, {pH <PH>|pH}",
        "<PART_OF_MIX>, {pH <PH>|pH}",
    ),
    "PART_OF_MIX": (
        "{<CONCENTRATION>|Concentration} {<SUBSTANCE>|Reagent}",
        "{<CONCENTRATION>|Concentration} {<SALT>|Reagent}",
        "{<AMOUNT>|Amount} {<SUBSTANCE>|Reagent}",
        "{<AMOUNT>|Amount} {<SALT>|Reagent}",
    ),
    "NOTE": (
        "this is a <ADJ_NOTE> point at which to stop <ASIDE>",
        "see the <ADJ_NOTE> part of section <DIGIT> <ASIDE>",
        "steps <DIGIT> and <DIGIT><DIGIT> are <ADJ_NOTE> <ASIDE>",
        "a <ADJ_NOTE> colour at this stage does not matter <ASIDE>",
        "results are <ADJ_NOTE> <ASIDE>",
    ),
    "ADJ_NOTE": _choices("critical; good; common; safe; optional; typical; later; relevant"),
    # Nothing inside an aside is an entity, though every word may be one elsewhere.
    "ASIDE": (
        "as described for the <VESSEL> in step <DIGIT>",
        "because <ASIDE_EVENT> @2",
        "since <ASIDE_EVENT> @2",
        "as in step <DIGIT>",
        "(see the note on <LIQUID> handling)",
        "(optional)",
        "in case <ASIDE_EVENT>",
    ),
    "ASIDE_EVENT": (
        "the <VESSEL> may clog",
        "excess <SUBSTANCE> lowers the <MEASURE>",
        "the <MATERIALS> may be <V_HOLD>~ed",
        "the <KIND> <LIQUID> is <QUALITY>",
        "too much <SUBSTANCE> is left in the <VESSEL>",
        "the <MACHINE> is busy",
    ),
    # Things acted on.
    "THING": (
        "the {<MATERIAL>|Reagent} @3",
        "the {<MATERIALS>|Reagent} @3",
        "{<MENTION>|Mention} @1.6",
        "the {<QUALITY>|Modifier} {<MATERIAL>|Reagent} @1.4",
        "the {<QUALITY>|Modifier} {<MATERIALS>|Reagent} @1.4",
        "{<ORIGIN> <MATERIALS>|Reagent} @1.2",
        "the {<MATERIALS>|Reagent} and {<MATERIAL>|Reagent} @0.8",
        "<REAGENT_NP> @1.2",
        "the <VESSEL_NP> @1.6",
        "the {wash|Reagent} @0.3",
        "the {aliquot|Reagent} @0.3",
        "the {<BRAND>|Reagent} @0.4",
    ),
    "THING_IS": (
        "the {<MATERIAL>|Reagent} is @3",
        "the {<MATERIALS>|Reagent} are @3",
        "the {<QUALITY>|Modifier} {<MATERIALS>|Reagent} are @1.5",
        "{<ORIGIN> <MATERIAL>|Reagent} is",
        "{they|Mention} are @0.7",
        "{it|Mention} is",
        "the <VESSEL_NP> is",
        "the {wash|Reagent} is @0.3",
    ),
    "DOSE": (
        "{<AMOUNT>|Amount} of <REAGENT_NP> @4",
        "{<AMOUNT>|Amount} {<CONCENTRATION>|Concentration} <BARE> @2.5",
        "{<CONCENTRATION>|Concentration} <BARE> @2.5",
        "<REAGENT_NP> @2.5",
        "{<VAGUE_AMOUNT>|Amount} of <BARE>",
        "<BARE> ({<CONCENTRATION>|Concentration} final) @0.6",
        "{<SALT>|Reagent} ({pH <PH>|pH}) @0.5",
        "{<AMOUNT>|Amount} {<SUBSTANCE>|Reagent} per {<AMOUNT>|Amount} <BARE> @0.6",
    ),
    "REAGENT_NP": ("<BARE> @5", "{<QUALITY>|Modifier} <BARE> @3", "the <BARE> @2"),
    "BARE": ("{<REAGENT>|Reagent}",),
    "REAGENT": (
        "<SUBSTANCE> @6",
        "<KIND> <LIQUID> @5",
        "<SALT> @3",
        "<ENZYME> @2",
        "<BRAND> <LIQUID> @1.2",
        "<BRAND>",
        "<SUBSTANCE> <LIQUID> @1.2",
        "<ORIGIN> <MATERIAL> @0.8",
        "<BRAND> <KIND> <LIQUID> @0.7",
        "<ORIGIN> <ENZYME> @0.5",
        "anti-<ORIGIN> antibody @0.5",
        "<KIND> <LIQUID> <LETTER> @0.8",
    ),
    "SALT": ("<CATION> <ANION>",),
    "ORGAN_NP": ("{<ORGAN>|Location} @2", "{<QUALITY>|Modifier} {<ORGAN>|Location}"),
    # Containers, devices, seals.
    "VESSEL_THE": (
        "the <VESSEL_NP> @4",
        "a <VESSEL_NP> @4",
        "each <VESSEL_NP>",
        "the {<PLACE_NOUN>|Location} of the <VESSEL_NP>",
        "{<COUNT>|Numerical} <QUALITY_OPT> {<VESSEL>s|Location} @0.8",
    ),
    "VESSEL_NP": (
        "{<VESSEL>|Location} @6",
        "{<QUALITY>|Modifier} {<VESSEL>|Location} @2.5",
        "{<CAPACITY>|Size} {<VESSEL>|Location} @2",
        "{<QUALITY>|Modifier} {<CAPACITY>|Size} {<VESSEL>|Location} @0.7",
        "{<BRAND> <VESSEL>|Location} @0.7",
        "{<KIND> <VESSEL>|Location} @1.2",
        "{<LENGTH>|Size} {<VESSEL>|Location} @0.6",
    ),
    "QUALITY_OPT": (" @2", "{<QUALITY>|Modifier}"),
    "INTO": ("to @3", "into @2", "onto"),
    "FROM_VESSEL": (" @3", "from <VESSEL_THE> @2", "into a <VESSEL_NP> @1.5"),
    "TOOL_NP": (
        "{<TOOL>|Device} @4",
        "{<LENGTH>|Size} {<TOOL>|Device} @1.2",
        "{<QUALITY>|Modifier} {<TOOL>|Device} @1.2",
        "{<BRAND> <TOOL>|Device} @0.8",
        "{<BRAND>|Device} @0.5",
    ),
    "MACHINE_NP": (
        "{<MACHINE>|Device} @5",
        "{<QUALITY>|Modifier} {<MACHINE>|Device}",
        "{<BRAND> <MACHINE>|Device} @1.5",
        "{<BRAND>|Device} @0.5",
    ),
    "SEAL_NP": (
        "{<SEAL>|Seal} @3",
        "a {<QUALITY>|Modifier} {<SEAL>|Seal}",
        "the {<SEAL>|Seal} @2",
        "{<BRAND> <SEAL>|Seal} @0.5",
    ),
    "METHOD_NP": ("{<N_METHOD>|Method} @3", "a {<QUALITY>|Modifier} {<N_METHOD>|Method}"),
    # Conditions and measures.
    "CONDITION": (
        "for {<TIME>|Time} @4",
        "at {<TEMPERATURE>|Temperature} @3",
        "at {<TEMPERATURE>|Temperature} for {<TIME>|Time} @5",
        "on {ice|Temperature} for {<TIME>|Time} @1.5",
        "{overnight|Time} at {<TEMPERATURE>|Temperature}",
        "on {ice|Temperature}",
        "in the <MACHINE_NP> for {<TIME>|Time}",
        "with {constant|Modifier} {shaking|Action} at {<SPEED>|Speed}",
    ),
    "SPIN_CONDITION": (
        "at {<SPEED>|Speed} for {<TIME>|Time} @4",
        "for {<TIME>|Time} at {<SPEED>|Speed} @2",
        "at {<SPEED>|Speed} @1.5",
        "for {<TIME>|Time}",
        "at {<SPEED>|Speed} and {<TEMPERATURE>|Temperature} for {<TIME>|Time}",
    ),
    "AMOUNT": ("<VOLUME> @5", "<MASS> @2"),
    "VOLUME": ("<NUMBER> µL @3", "<NUMBER> mL @3", "<NUMBER> ml", "<NUMBER> ul", "<DIGIT> L @0.6"),
    "MASS": ("<NUMBER> g", "<NUMBER> mg", "<NUMBER> µg", "<NUMBER> ng", "<NUMBER> pmol @0.6"),
    "TIME": (
        "<COUNTED> min @4",
        "<COUNTED> minutes @2",
        "<COUNTED> s",
        "<COUNTED> sec",
        "<DIGIT> h @1.5",
        "<RANGE> hours",
        "<RANGE> min @0.7",
        "<DIGIT> days @0.7",
        "<VAGUE_TIME> @1.5",
    ),
    "TEMPERATURE": (
        "<DEGREES> °C @4",
        "<DEGREES>°C @2",
        "-<DEGREES> °C",
        "<DEGREES> C @0.6",
        "<VAGUE_TEMPERATURE> @1.5",
    ),
    "SPEED": (
        "<THOUSANDS> × g @3",
        "<THOUSANDS> rpm @3",
        "<HUNDREDS> rpm @1.5",
        "<HUNDREDS> x g",
        "<VAGUE_SPEED> @1.5",
    ),
    "CONCENTRATION": (
        "<NUMBER> mM @3",
        "<NUMBER>% @3",
        "<NUMBER> % @0.8",
        "<DIGIT> M",
        "<DIGIT>X",
        "<NUMBER> mg/mL",
        "<NUMBER> µM",
        "<NUMBER> U/µL @0.6",
        "<NUMBER>% (v/v) @0.5",
    ),
    "LENGTH": _choices(
        "<DIGIT> mm; 0.<DIGIT> µm; <DIGIT> cm; <COUNTED> gauge @0.7; <DIGIT>-inch @0.5"
    ),
    "RATIO": _choices("1:<NUMBER> @3; 1:<HUNDREDS>; <DIGIT>-fold; <NUMBER>-fold"),
    "OPTICAL": _choices("OD600 @3; OD; absorbance; A600"),
    "READING": _choices("0.<DIGIT> @3; <DIGIT>.<DIGIT>; 0.<DIGIT>-1.<DIGIT>; <NUMBER>"),
    "PH": _choices("7.<DIGIT> @2; 8.<DIGIT>; 6.<DIGIT>; <DIGIT>; <DIGIT>.<DIGIT>"),
    "NUMBER": _choices(
        "10 @3; 5 @3; 1 @2.5; 2 @2.5; 20 @2; 50 @2; 100 @2; 30 @2; 15; 3; 200; 500; 0.5; 25;"
        " 1.5; 4; 40; 250; 2.5; 60; 12; 0.1 @0.7; 75 @0.7; 45 @0.7; 350 @0.5; 7.5 @0.5; 12.5"
        " @0.5; <DIGIT><DIGIT> @1.5; <DIGIT>.<DIGIT> @1.5"
    ),
    "DEGREES": _choices("37 @3; 4 @3; 95; 65; 20; 80; 42; 55; 72; 94 @0.6; <DIGIT><DIGIT>"),
    "THOUSANDS": _choices("12,000 @2; 10,000; 14,000; 3,000; <DIGIT>,000 @2; <DIGIT>,<DIGIT>00"),
    "HUNDREDS": _choices("500; 300; 200; 800 @0.7; <DIGIT>50; <DIGIT>00"),
    "DIGIT": _choices("2 @2; 1 @2; 3 @1.5; 5 @1.5; 4; 6; 8; 7; 9 @0.7"),
    "COUNTED": _choices(
        "10 @3; 5 @3; 30 @3; 2 @2; 15 @2; 1 @2; 20 @2; 3; 45; 60; 90 @0.7; 40; 12 @0.7; 25"
        " @0.7; <DIGIT><DIGIT>"
    ),
    "RANGE": _choices("5-10; 10-15; 2-3; 1-2; 16-18; 12-24; 3-4 @0.7; 4-<DIGIT>0 @0.7"),
    "CAPACITY": _choices(
        "50 mL @2; 1.5 mL @2; 15 mL @2; 2 mL @2; 250 mL; 500 mL; 10 mL; 5 mL; 1 L; 0.2 mL;"
        " 100 mL; <NUMBER> mL; <NUMBER> µL; <NUMBER> ml"
    ),
    "LETTER": _choices("A @2; B @1.5; C; II @0.7; W1 @0.5; E @0.5"),
}
