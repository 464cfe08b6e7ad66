//! What each key of the story templates may stand for.

/// Choices are separated by `|`. Articles come from the template.
pub(super) const RULES: &[(&str, &str)] = &[
    (
        "trait",
        "curious|gentle|clever|cheerful|quiet|stubborn|dreamy|kind|lively|careful|proud|shy|\
         patient|restless|honest|friendly|thoughtful|merry|bold|absent-minded",
    ),
    (
        "trait_b",
        "old|young|wise|sleepy|grumpy|polite|skinny|round|silent|talkative|good-natured|\
         serious|playful|wandering|elderly|helpful",
    ),
    ("small", "small|tiny|wet|little|trembling|frozen|very small"),
    (
        "home",
        "at the edge of a forest|beside a slow river|on top of a windy hill|near the sea|\
         in a narrow valley|at the end of a long lane|behind the old mill|under a great oak|\
         between two lakes|on a little island|in the middle of a busy town|by the harbour|\
         not far from the mountains|next to an apple orchard|in a village of twelve houses",
    ),
    (
        "hobby",
        "collecting stones|painting|singing|reading|climbing trees|watching the stars|baking|\
         fishing|swimming|telling riddles|counting clouds|mending things|picking berries|\
         playing the flute|walking in the rain|drawing maps",
    ),
    ("season", "spring|summer|autumn|winter"),
    (
        "weather",
        "sunny|rainy|foggy|stormy|windy|cold|warm|cloudy|bright|grey|misty|clear|frosty|quiet",
    ),
    (
        "colour",
        "red|blue|green|yellow|silver|golden|purple|white|orange|brown|striped|spotted|shiny",
    ),
    ("shade", "red|pink|as red as a cherry|red up to the ears"),
    (
        "treasure",
        "lantern|music box|button|key|bell|shell|compass|spoon|marble|ribbon|whistle|teapot|\
         clock|crown|wooden horse|feather|ring",
    ),
    (
        "spot_a",
        "in the cupboard|behind the stove|under the stairs|in every drawer|\
         in the laundry basket|on the roof|among the books|in the pantry",
    ),
    (
        "spot_b",
        "under the bed|behind the piano|beneath the carpet|into the cellar|\
         under the bench in the yard|behind the barrels|through the hedge",
    ),
    (
        "junk",
        "a lonely sock|three dusty walnuts|a broken comb|an old newspaper|a spider|\
         last year's apples|half a biscuit|a rusty nail",
    ),
    (
        "sad",
        "sad|miserable|gloomy|lonely|disappointed|worried|downhearted",
    ),
    (
        "path",
        "along the river|through the meadow|across the market square|over the wooden bridge|\
         past the windmill|through the tall grass|down the hill|along the beach|\
         through the orchard|up the stony path|into the woods",
    ),
    (
        "hiding",
        "a pile of leaves|an old boat|a mossy log|a bucket|a blueberry bush|a broken cart|\
         a heap of hay|an empty basket|a wooden crate",
    ),
    (
        "drink",
        "tea|cocoa|warm milk|lemonade|apple juice|soup|mint tea",
    ),
    (
        "machine",
        "kite|raft|tree house|windmill|sledge|rowing boat|swing|bridge|wagon|balloon|\
         telescope|bird house|water wheel",
    ),
    (
        "material_a",
        "old planks|empty crates|bamboo sticks|a bed sheet|two broken chairs|a wheelbarrow|\
         thin branches|pieces of cloth",
    ),
    (
        "material_b",
        "a box of nails|a pot of glue|four wheels|a saw|a rope|some copper wire|\
         a jar of paint|leather straps",
    ),
    ("limbs", "fingers|arms|shoulders|feet"),
    (
        "broke",
        "fell to pieces|tipped over|sank into the mud|cracked in the middle|\
         collapsed with a groan|rolled away and hit a wall|\
         made a sad little noise and stopped",
    ),
    (
        "fix",
        "a longer rope|stronger knots|a second layer of wood|a bit of wax|a wider base|\
         better glue|one more nail|a tail made of rags|a smaller wheel",
    ),
    (
        "goal",
        "the great waterfall|the lighthouse at the end of the world|the sea|\
         the castle in the clouds|the valley of a thousand flowers|the highest mountain|\
         the frozen lake|the singing caves|the old city with its hundred towers|\
         the island of the seals|the field of fireflies",
    ),
    (
        "food",
        "bread and cheese|a bag of nuts|three pears|a jar of honey|some raisins|\
         cold pancakes|a round loaf|dried plums|carrots|a piece of pie",
    ),
    (
        "tool",
        "a rope|a lantern|a walking stick|an umbrella|a wooden spoon|a ladder|a broom|\
         a fishing net|a long pole|a big blanket",
    ),
    (
        "obstacle",
        "a river without a bridge|a wall of thorns|a deep ditch|a steep cliff|\
         a swamp full of mosquitoes|a gate that was locked|a fallen tree|\
         a field of sharp rocks",
    ),
    (
        "fear",
        "the dark|thunder|deep water|the big dog next door|the old forest|the cellar|\
         lightning|the attic|the black lake|the wind",
    ),
    (
        "far",
        "down by the pond|behind the barn|at the far end of the field|near the old well|\
         close to the ruins|at the foot of the hill|beyond the fence|\
         on the other side of the brook",
    ),
    (
        "trouble",
        "had fallen into a ditch|was stuck in a hollow tree|had slipped on the wet stones|\
         was caught in the brambles|had climbed too high and did not dare to come down|\
         could not get out of the mud|had hurt a foot and could not walk|was tangled in a net",
    ),
    (
        "cake",
        "a plum cake|an apple pie|a loaf of sweet bread|a cherry tart|a honey cake|\
         a nut roll|a lemon cake|a pudding",
    ),
    (
        "present",
        "a silver thimble|a sack of flour that never seemed to end|a warm woollen scarf|\
         a map with a cross on it|a little wooden flute|a bag of the finest seeds|\
         a golden pear|a hand-painted cup",
    ),
    (
        "clothing",
        "a scarf|a pair of gloves|a woollen hat|a jumper|a soft blanket|a waistcoat",
    ),
    (
        "flowers",
        "a bunch of daisies|one single poppy|a handful of clover|a few bluebells|\
         a branch of lilac|some dandelions|a sunflower",
    ),
    (
        "game",
        "cards|hide and seek|chess|ball|dominoes|tag|guessing games",
    ),
    (
        "contest",
        "race|baking contest|singing contest|boat race|kite festival|swimming race|\
         obstacle race|sledge race",
    ),
    (
        "prize",
        "a golden cup|a basket of strawberries|a new bicycle|a barrel of honey|\
         a shining medal|a hat with a feather|a whole wheel of cheese",
    ),
    (
        "room",
        "the kitchen|the attic|the cellar|the hall|the workshop|the pantry",
    ),
    (
        "sound",
        "tap, tap, tap|scratch, scratch|plop|rustle, rustle|clink, clink|creak|thump, thump|\
         squeak",
    ),
    (
        "fruit",
        "golden apples|sweet plums|fat cherries|pears as big as pumpkins|blue berries|\
         peaches|walnuts|figs",
    ),
    (
        "landmark",
        "a crooked tower|a tree with two trunks|a red gate|a tall chimney|a stone lion|\
         a white rock|an old signpost|a blue boat",
    ),
];
