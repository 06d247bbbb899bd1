"""Words of the bundled WLP sample, most frequent first.

Each list is drawn from with Zipfian weights, so the order is the distribution: the head of
a list is seen by anyone with a few hundred labels, its tail only in the unlabelled text.
Many words stand in lists of several entity types on purpose ("plate", "wash", "seal", the
brands): only the sentence says which type they have.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(";"))


LEXICON: dict[str, tuple[str, ...]] = {
    # Actions, by the arguments they take.
    "V_ADD": _words(
        "add transfer pipette dispense load pour apply spot inject plate aliquot deposit layer"
        " introduce deliver drip titrate spike return streak spread pump smear seed administer"
    ),
    "V_HOLD": _words(
        "incubate heat cool store culture shake dry warm chill thaw freeze boil rotate stir rock"
        " agitate sonicate soak digest autoclave denature anneal hold bake equilibrate keep"
        " rehydrate irradiate lyophilise ferment reflux degas macerate evaporate germinate temper"
        " cure hydrolyse oxidise simmer acclimate desiccate starve age steep"
    ),
    "V_MIX": _words(
        "mix vortex invert swirl stir blend homogenise flick triturate tap tumble whisk emulsify"
        " agitate knead"
    ),
    "V_SPIN": _words(
        "centrifuge spin pellet sediment microfuge clarify ultracentrifuge fractionate"
    ),
    "V_REMOVE": _words(
        "remove discard collect aspirate decant recover harvest withdraw save drain retain skim"
        " scrape pool extract filter siphon retrieve elute blot strain precipitate purify isolate"
        " excise dissect bleed"
    ),
    "V_WASH": _words(
        "wash rinse clean flush stain wipe immerse dip bathe block fix soak submerge scrub perfuse"
        " dehydrate swab probe permeabilise counterstain etch quench destain silanise"
    ),
    "V_CHECK": _words(
        "measure check record monitor determine verify count estimate quantify weigh read inspect"
        " calculate assess note track gauge confirm compare plot normalise"
    ),
    "V_MAKE": _words(
        "prepare dilute dissolve resuspend make label assemble reconstitute suspend neutralise"
        " acidify buffer supplement sterilise saturate amplify ligate transform transfect"
        " biotinylate crosslink grind mince trypsinise"
    ),
    "V_LABEL": _words("prepare label make"),
    "V_CUT": _words("dissect excise remove isolate open"),
    "V_SEAL": _words("seal cover cap close wrap plug overlay stopper clamp crimp"),
    "V_PLACE": _words(
        "place put insert set mount position return move attach lower stack lay invert align dock"
        " fit suspend fasten"
    ),
    "V_PHRASAL": _phrases(
        "spin down; set up; pour off; pipette up and down; take up; top up; wash out; drain off;"
        " bring up; shake off; break up; dry out; snap freeze; flash freeze; pipette out; hook up"
    ),
    "N_METHOD": _phrases(
        "spin; wash; electrophoresis; PCR; extraction; centrifugation; dialysis; sonication;"
        " chromatography; gel filtration; heat shock; dilution series; electroporation; ligation;"
        " transformation; hybridisation; Western blot; immunostaining; microscopy; lysis; ELISA;"
        " quick spin; titration; flow cytometry; sequencing; in vitro transcription; desalting;"
        " restriction digest; end repair; size selection; mass spectrometry; reverse transcription;"
        " freeze-thaw cycle; serial dilution; negative staining; phase separation; distillation;"
        " minipreparation; plaque assay; spectroscopy; tagmentation; gradient fractionation;"
        " cryosectioning; adapter ligation; ethanol precipitation; bead beating; turbidimetry"
    ),
    # Reagents and what stands in their names.
    "MATERIAL": _words(
        "DNA RNA sample pellet supernatant lysate culture plasmid protein tissue mixture solution"
        " suspension medium eluate agarose template resin antibody extract serum virus library"
        " homogenate filtrate cDNA slurry phage probe precipitate yeast inoculum plasma sediment"
        " matrix blood saliva biofilm chromatin gRNA siRNA mRNA sputum pollen callus mycelium urine"
        " amplicon peptide"
    ),
    "MATERIALS": _words(
        "cells beads bacteria primers samples fractions nuclei spores leaves membranes oligos"
        " embryos mitochondria seedlings larvae hepatocytes roots microsomes platelets conidia"
        " ribosomes exosomes neurons explants adapters vesicles protoplasts lymphocytes"
        " macrophages fibroblasts algae worms brains islets oocytes biopsies nematodes tubers"
    ),
    "SUBSTANCE": _words(
        "ethanol water PBS glycerol methanol isopropanol trypsin agar phenol EDTA chloroform SDS"
        " DTT acetone DMSO lysozyme Tris glucose sucrose formaldehyde BSA IPTG Tween-20 urea"
        " ampicillin HEPES imidazole heparin gelatin acetonitrile paraformaldehyde kanamycin"
        " Triton casein TEMED hexane toluene xylene butanol PMSF glutathione spermidine ammonia"
        " bleach hydroxylamine guanidine betaine formamide maltose xylose sorbitol mannitol"
        " dextran ficoll percoll benzene pyridine cycloheximide tetracycline streptomycin"
        " rifampicin nystatin puromycin ketamine isoflurane paraffin eosin safranin fluorescein"
        " rhodamine luciferin biotin thymidine uracil leucine histidine cysteine arginine glutamine"
        " choline thiamine aprotinin digitonin saponin octanol heptane dioxane trehalose pectin"
        " inulin chitin keratin laminin collagen"
    ),
    "ENZYME": _words(
        "ligase polymerase proteinase RNase DNase nuclease phosphatase kinase lipase amylase"
        " protease transposase catalase cellulase pectinase hyaluronidase collagenase helicase"
        " topoisomerase esterase integrase recombinase peroxidase glucosidase exonuclease"
        " transferase papain dispase zymolyase lyticase luciferase benzonase telomerase"
    ),
    "CATION": _words(
        "sodium potassium magnesium calcium ammonium zinc lithium manganese copper iron cobalt"
        " nickel barium cesium silver lead strontium rubidium cadmium chromium aluminium mercuric"
        " ferric ferrous cupric"
    ),
    "ANION": _words(
        "chloride acetate phosphate sulfate hydroxide citrate carbonate nitrate azide bicarbonate"
        " borate iodide bromide fluoride tartrate formate molybdate oxalate thiosulfate succinate"
        " pyruvate lactate benzoate malate periodate glutamate ascorbate persulfate"
    ),
    "KIND": _words(
        "wash lysis elution binding running blocking loading stock staining sample dilution assay"
        " extraction storage reaction transfer neutralisation stop coating reducing equilibration"
        " homogenisation precipitation denaturing hybridisation annealing rinse sonication"
        " permeabilisation quench destaining fixation digestion stripping seeding stabilising"
        " tagmentation priming labelling freezing"
    ),
    "LIQUID": _words(
        "buffer solution mix medium reagent broth stock cocktail agar dye diluent wash standard gel"
        " substrate concentrate premix detergent enhancer conjugate stain additive oil fluid"
        " slurry matrix adjuvant inhibitor activator tracer ladder fixative"
    ),
    "ORIGIN": _words(
        "mouse rat human bovine rabbit chicken maize tobacco soil marine goat porcine insect coral"
        " zebrafish murine equine wheat barley rice potato tomato poplar spinach mosquito salmon"
        " frog sheep hamster cotton"
    ),
    # Brands are reagents, devices or containers: only the head noun or the verb tells.
    "BRAND": tuple(
        first + last
        for last in _words("pure lex quant zol spin trap flow")
        for first in _words("Nucleo Cyto Viro Magna Pro Ribo Aqua Immuno")
    ),
    # Locations, devices, seals.
    "VESSEL": _words(
        "tube plate flask well column beaker dish vial bottle filter slide cuvette bag chamber"
        " cartridge rack tray reservoir bucket jar bath trough syringe funnel cylinder mortar"
        " cryovial coverslip hood crucible cassette capillary carboy basin ampoule manifold"
        " microplate canister desiccator burette cage fermenter"
    ),
    "PLACE_NOUN": _words(
        "bottom side surface top wall centre rim edge neck base inlet corner mouth tip interior"
        " periphery shoulder outlet meniscus"
    ),
    "ORGAN": _words("liver kidney lung tail leaf stem abdomen thorax ear flank gill"),
    "TOOL": _phrases(
        "pipette; needle; filter; syringe; magnet; spatula; scalpel; column; pump; swab;"
        " glass rod; razor blade; cell scraper; inoculating loop; sieve; plate reader; nanodrop;"
        " dispenser; stir bar; pestle; plunger; blender; fluorometer; tissue grinder; scale;"
        " microtome; manifold; camera; vacuum pump; spectrophotometer; thermometer; membrane filter"
    ),
    "MACHINE": _phrases(
        "centrifuge; incubator; thermocycler; shaker; freezer; water bath; heat block; vortex;"
        " rotor; magnetic stand; hot plate; rotator; fume hood; sonicator; microfuge; oven;"
        " gel box; microscope; homogeniser; refrigerator; microwave; scanner; vortex mixer;"
        " sequencer; bead mill; electroporator; evaporator; cryostat; autosampler; cell sorter"
    ),
    "SEAL": _words(
        "lid cap parafilm foil seal film cover stopper tape membrane plug septum cling-film gasket"
        " cork sleeve clamp mat collar"
    ),
    # Modifiers.
    "ADVERB": _words(
        "gently carefully briefly immediately slowly thoroughly quickly completely vigorously"
        " again separately gradually evenly drop-wise rapidly overhead aseptically"
        " lightly repeatedly constantly tightly loosely simultaneously promptly partially"
        " individually manually intermittently directly firmly moderately horizontally upside-down"
        " periodically sequentially swiftly cautiously uniformly anaerobically"
    ),
    "QUALITY": _words(
        "fresh new clean cold sterile remaining dry warm excess ice-cold washed empty appropriate"
        " diluted frozen small pre-warmed prepared dried large thawed filtered residual clear"
        " concentrated digested labelled chilled crude stained cooled fixed unbound lower upper"
        " aqueous viscous purified pooled aliquoted heated autoclaved degassed undiluted saturated"
        " resuspended opaque intact amber pre-cut dark siliconised transparent narrow shallow"
        " plated spun infected starved cultured anhydrous crushed ground powdered minced soluble"
        " trimmed inverted pelleted turbid denatured"
    ),
    # Measures.
    "MEASURE": _phrases(
        "volume; concentration; absorbance; OD600; pH; weight; temperature; yield; density; purity;"
        " OD; fluorescence; speed; length; viability; titre; conductivity; thickness; turbidity;"
        " molarity; mass; growth rate; optical density; flow rate; pressure; signal; intensity;"
        " confluence; radioactivity; salinity; viscosity; A260; luminescence; diameter; voltage;"
        " copy number; fragment size; moisture; hardness; insert size; membrane potential"
    ),
    "VAGUE_AMOUNT": _phrases(
        "a few drops; 1 volume; 2 volumes; one drop; an equal volume; half the volume; a small"
        " amount; 10 volumes; a pinch; one third volume; trace amounts; one part; a loopful"
    ),
    "VAGUE_TIME": _phrases(
        "overnight; a few minutes; several hours; two days; a few seconds; 1 week; one hour;"
        " a couple of days; half an hour; one generation; several months; a minute; a weekend;"
        " three nights; two weeks"
    ),
    "VAGUE_TEMPERATURE": _phrases(
        "room temperature; ambient temperature; RT; body temperature; freezing; room temp;"
        " dry ice temperature; boiling point"
    ),
    "VAGUE_SPEED": _phrases(
        "full speed; maximum speed; top speed; low speed; high speed; medium speed; max speed;"
        " half speed; the lowest setting; minimum speed"
    ),
    "COUNT": _words("two three four six five eight 12 ten 24 several 96 seven nine 16 48"),
    "TIMES": _phrases(
        "three times; twice; once; two times; several times; 5 times; four times; 10 times;"
        " 3x; at least twice; six times; 20 times; a third time; five more times; 50 times"
    ),
    "MENTION": _words("it them this these each both"),
    "INTRO": _words(
        "then next finally meanwhile afterwards first alternatively now subsequently otherwise"
        " lastly typically usually"
    ),
}
