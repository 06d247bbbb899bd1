"""What happens in the bundled MultiPIT samples, and the ways to say it. All of it is made up.

A saying has slots: "{team}" is a team; "{team2}" another one. Every saying of an event has the
same slots, so that any two with the same fillings are paraphrases.
"""

from __future__ import annotations


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


EVENTS: dict[str, tuple[str, ...]] = {
    "win": (
        "{team} beat {team2} in {city}",
        "{team} win against {team2} in {city}",
        "{city} : {team} defeat {team2}",
        "In {city} {team2} lose to {team}",
        "{team2} were beaten by {team} in {city}",
        "A victory for {team} over {team2} in {city}",
    ),
    "signing": (
        "{team} sign {person} from {team2}",
        "{person} leaves {team2} for {team}",
        "{person} moves from {team2} to {team}",
        "{team} get {person} of {team2}",
        "{team2} sell {person} to {team}",
        "{person} will play for {team} , not {team2}",
    ),
    "concert": (
        "{person} cancels the concert in {city}",
        "No show by {person} in {city} after all",
        "{city} concert of {person} called off",
        "{person} will not sing in {city}",
        "{person} calls off the {city} gig",
        "The gig of {person} in {city} is cancelled",
    ),
    "fire": (
        "{number} hurt in factory fire in {city}",
        "Fire at {city} factory injures {number}",
        "A blaze in a {city} plant leaves {number} injured",
        "{city} : factory burns , {number} people hurt",
        "{number} injured as plant burns in {city}",
        "Flames in {city} factory , {number} wounded",
    ),
    "storm": (
        "Storm {name} hits {city}",
        "{city} is struck by storm {name}",
        "Hurricane {name} reaches {city}",
        "{name} makes landfall near {city}",
        "Heavy winds as {name} arrives in {city}",
        "{city} battered by {name} winds",
    ),
    "layoff": (
        "{company} fires {number} workers",
        "{number} jobs lost at {company}",
        "{company} cuts {number} jobs",
        "{company} lets {number} people go",
        "{number} employees of {company} laid off",
        "Layoffs at {company} : {number} staff must leave",
    ),
    "deal": (
        "{company} buys {company2}",
        "{company2} is sold to {company}",
        "{company} takes over {company2}",
        "{company2} acquired by {company}",
        "{company} to acquire rival {company2}",
        "Takeover : {company2} now belongs to {company}",
    ),
    "election": (
        "{person} wins the election in {city}",
        "{city} elects {person} as mayor",
        "{person} is the new mayor of {city}",
        "Voters in {city} choose {person}",
        "{city} mayor race goes to {person}",
        "{person} elected to lead {city}",
    ),
    "resignation": (
        "{person} quits as head of {company}",
        "{company} boss {person} resigns",
        "{person} steps down at {company}",
        "{company} loses its chief {person}",
        "{person} gives up the top job at {company}",
        "Resignation of {person} shakes {company}",
    ),
    "prize": (
        "{person} wins the {name} prize",
        "The {name} award goes to {person}",
        "{name} prize for {person}",
        "{person} receives the {name} award",
        "Jury gives the {name} award to {person}",
        "{person} honoured with the {name} prize",
    ),
    "strike": (
        "Train strike stops {city} for {number} days",
        "No trains in {city} for {number} days",
        "{city} railway workers walk out for {number} days",
        "{number} days without trains in {city}",
        "{city} trains halted {number} days by strike",
        "Rail staff of {city} on strike for {number} days",
    ),
    "product": (
        "{company} shows new phone {name}",
        "New {name} phone presented by {company}",
        "{company} unveils the {name} phone",
        "{name} is the new phone of {company}",
        "Here comes the {name} , a phone by {company}",
        "{company} launches phone called {name}",
    ),
}

# What else is said of what stands in a slot: about the same subject, and no report.
REACTIONS = (
    "I love {} so much",
    "my friend from {} is here",
    "{} is so boring lately",
    "who else is a fan of {} ?",
    "never liked {} anyway",
    "thinking about {} all day",
    "can we talk about {} please",
    "I had a dream about {}",
    "someone told me {} is overrated",
    "why does nobody explain {} ?",
    "{} makes me laugh",
    "good old {} , how are you",
)

FILLERS: dict[str, tuple[str, ...]] = {
    "team": _phrases(
        "Rovers; Falcons; Harbor FC; Union; Dynamo; Lynx; Pirates; Meteors; Old Boys; Condors"
    ),
    "city": _phrases(
        "Brindleford; Velmora; Kesselby; Jundal; Thornwick; Piresso; Ulvenhal; Marrakand;"
        " Graywater; Castermoor"
    ),
    "person": _phrases(
        "Tolan; Okoru; Beskin; Marrow; Ilvane; Quist; Hadda; Renfold; Szabel; Varga; Pemba; Dorrit"
    ),
    "company": _phrases("Zentrix; Corvanta; Palomo; Ubrek; Lumatek; Ferrobane; Norvex; Haldane"),
    "name": _phrases("Orla; Titan; Vega; Luna; Boreas; Nimbus; Aurora; Zephyr"),
    "number": _phrases("2; 3; 5; 7; 9; 12; 20; 40"),
}

OPENINGS = ("", "", "", "", "BREAKING : ", "#news ", "Wow , ", "@USER ")
ENDINGS = ("", "", "", "", " .", " !", " HTTPURL", " #news", " @USER", " ...")
