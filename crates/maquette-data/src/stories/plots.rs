//! The characters of the stories and what happens to them.

/// Somebody a story can be about.
#[derive(Clone, Copy)]
pub(super) struct Character {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) female: bool,
}

const fn she(name: &'static str, kind: &'static str) -> Character {
    Character {
        name,
        kind,
        female: true,
    }
}

const fn he(name: &'static str, kind: &'static str) -> Character {
    Character {
        name,
        kind,
        female: false,
    }
}

pub(super) const CHARACTERS: &[Character] = &[
    she("Mina", "girl"),
    she("Clara", "girl"),
    she("Ada", "girl"),
    she("Rosa", "girl"),
    he("Tom", "boy"),
    he("Jonas", "boy"),
    he("Emil", "boy"),
    he("Sami", "boy"),
    she("Hazel", "squirrel"),
    she("Pip", "mouse"),
    he("Bruno", "bear"),
    he("Oskar", "otter"),
    she("Tilda", "hedgehog"),
    he("Fennel", "fox"),
    she("Willow", "owl"),
    he("Barnaby", "badger"),
    she("Luna", "rabbit"),
    he("Mossy", "frog"),
    she("Greta", "goose"),
    he("Milo", "mole"),
    she("Wren", "sparrow"),
    he("Hugo", "heron"),
    she("Dot", "beetle"),
    he("Kit", "cat"),
];

pub(super) const OPENINGS: &[&str] = &[
    "Once upon a time there was {a trait} {kind} named {hero} who lived {home}.",
    "There was once {a trait} {kind} called {hero}, and {she} lived {home}.",
    "{Home} lived {hero}, {a trait} {kind} who loved {hobby}.",
    "In a small house {home} lived {a trait} {kind}. Everyone called {obj} {hero}.",
    "{Hero} was {a trait} {kind} who lived {home} and loved {hobby}.",
    "Long ago, {home}, {a trait} {kind} named {hero} spent every day {hobby}.",
    "This is the story of {hero}, {a trait} {kind}, and of what once happened to {obj}.",
    "Not so long ago {a trait} {kind} by the name of {hero} moved into a house {home}.",
];

/// Each plot is a row of beats, and each beat a choice of templates.
pub(super) const PLOTS: &[&[&[&str]]] = &[
    LOST, BUILDING, JOURNEY, FEAR, SHARING, GIFT, CONTEST, NOISE, GARDEN, LETTER,
];

const LOST: &[&[&str]] = &[
    &[
        "The thing {she} loved best was {a colour} {treasure}.",
        "{Her} grandmother had given {obj} {a colour} {treasure}, and {she} took it everywhere.",
        "On {her} shelf stood {a colour} {treasure} that shone in the morning light.",
    ],
    &[
        "One {weather} morning the {treasure} was gone!",
        "But one {weather} day {she} came home and could not find the {treasure} anywhere.",
        "Then, on {a weather} afternoon, the {treasure} was suddenly missing.",
    ],
    &[
        "{Hero} looked {spot_a}, but found only {junk}.",
        "First {she} searched {spot_a}. There was nothing there but {junk}.",
    ],
    &[
        "Then {she} looked {spot_b}, and there was nothing at all.",
        "After that {she} crawled {spot_b}, and came out with dust on {her} nose.",
        "Next {she} tried {spot_b}, without any luck.",
    ],
    &[
        "\"What is the matter?\" asked {friend}, the {fkind} from next door.",
        "{Friend} the {fkind} heard {obj} sigh and came to help.",
        "\"You look {sad},\" said {a trait_b} {fkind} named {friend}. \"May I help you look?\"",
    ],
    &[
        "Together they walked back {path}, slowly, step by step.",
        "\"Let us think about where you went yesterday,\" said {friend}, and so they went {path}.",
        "\"Two pairs of eyes see more than one,\" said {friend}, and they set off {path}.",
    ],
    &[
        "And there, under {hiding}, lay the {treasure}.",
        "Suddenly something sparkled under {hiding}. It was the {treasure}!",
    ],
    &[
        "{Hero} hugged {friend} and laughed. \"Thank you,\" {she} said. \"I would never have found it alone.\"",
        "\"You found it!\" cried {hero}, and danced around {her} friend.",
    ],
    &[
        "That evening they drank {drink} together, and the {treasure} stood on the table between them.",
        "From that day on, whenever something was lost, the two of them looked for it together.",
        "{Hero} put the {treasure} back in its place, and it has stayed there ever since.",
    ],
];

const BUILDING: &[&[&str]] = &[
    &[
        "One {season} day {hero} decided to build {a machine}.",
        "\"I am going to build {a machine},\" {she} said one {weather} morning.",
        "{Hero} had always dreamed of building {a machine}, and one {weather} day {she} began.",
    ],
    &[
        "{She} gathered {material_a}, {material_b} and a lot of string.",
        "{She} took {material_a} from the shed and borrowed {material_b} from a neighbour.",
    ],
    &[
        "All morning {she} hammered and measured and sang.",
        "{She} worked until {her} {limbs} hurt, and when the sun stood high it was finished.",
        "It was harder than {she} had thought, but {she} did not give up.",
    ],
    &[
        "But when {she} tried it for the first time, it {broke}.",
        "Proudly {she} tried it out, and at once it {broke}.",
        "Alas! At the very first try it {broke}.",
    ],
    &[
        "{Hero} sat down in the grass and felt {sad}.",
        "For a while {she} said nothing at all.",
        "\"Everything I make goes wrong,\" {she} muttered.",
    ],
    &[
        "{Friend} the {fkind} looked at the pieces. \"It is a good idea,\" {fshe} said. \"It only needs {fix}.\"",
        "Then {friend}, {a trait_b} {fkind}, came by. \"Have you tried {fix}?\" {fshe} asked.",
    ],
    &[
        "So they took it apart and began again, this time with {fix}.",
        "They started over, and {friend} brought {fix}.",
    ],
    &[
        "In the evening they tried once more, and it worked!",
        "They held their breath. This time it held.",
        "When everything was ready they counted to three, and it worked better than anyone had hoped.",
    ],
    &[
        "\"The first one was not a mistake,\" said {hero}. \"It was practice.\"",
        "{Hero} learned that day that a thing that breaks can teach you how to make it stronger.",
        "Half the village came to see it, and {hero} told everybody that {friend} had helped.",
    ],
];

const JOURNEY: &[&[&str]] = &[
    &[
        "More than anything, {she} wanted to see {goal}.",
        "{Her} grandfather often spoke of {goal}, and {hero} longed to see it with {her} own eyes.",
        "Every night {she} dreamed of {goal}.",
    ],
    &[
        "So one {weather} {season} morning {she} packed {food} and {tool} and set out {path}.",
        "One {weather} day {she} put {food} into {a colour} bag, took {tool}, and left {path}.",
    ],
    &[
        "Before noon {she} met {friend}, {a trait_b} {fkind}, who was resting on a stone.",
        "On the way {she} met {a fkind}. \"I am {friend},\" said the {fkind}. \"Where are you going?\"",
    ],
    &[
        "\"May I come along?\" asked {friend}. \"Of course,\" said {hero}. \"The road is shorter for two.\"",
        "When {friend} heard about {goal}, {fshe} wanted to come too, and {hero} shared what {she} had brought.",
    ],
    &[
        "In the afternoon they came to {obstacle}.",
        "But then {obstacle} blocked the way.",
        "They had not gone far when they reached {obstacle}.",
    ],
    &[
        "\"We will never get past it,\" said {friend}. But {hero} remembered what {she} had brought: {tool}.",
        "{Friend} wanted to turn back. \"Wait,\" said {hero}, \"I still have {tool}.\"",
    ],
    &[
        "With a little courage and a lot of laughing they reached the other side.",
        "It took them an hour, and they got very dirty, but they came through.",
        "They helped each other, one step at a time, until it lay behind them.",
    ],
    &[
        "At sunset they finally saw it: {goal}.",
        "Just as the first star came out they stood before {goal}.",
    ],
    &[
        "It was even more beautiful than in the stories.",
        "Neither of them spoke for a long time.",
        "\"It is bigger than I thought,\" whispered {hero}.",
    ],
    &[
        "They slept under the open sky and walked home the next day, already planning another journey.",
        "Years later they still talked about that day.",
        "When {she} came home, {hero} told the whole story twice, and {friend} told it a third time.",
    ],
];

const FEAR: &[&[&str]] = &[
    &[
        "{Hero} was brave about many things, but {she} was afraid of {fear}.",
        "There was only one thing that frightened {obj}: {fear}.",
        "Nobody knew that {hero} was terribly afraid of {fear}.",
    ],
    &[
        "Whenever {she} thought of it, {her} knees began to shake.",
        "Just the thought of it made {her} heart beat fast.",
        "{She} always found a reason to stay at home.",
    ],
    &[
        "One {weather} evening {she} heard somebody call for help {far}.",
        "Then, one {weather} {season} night, a small voice cried for help {far}.",
    ],
    &[
        "It was {friend}, the little {fkind}, who {trouble}.",
        "{Friend} the {fkind} {trouble}, and nobody else was near.",
    ],
    &[
        "{Hero} wanted to run away. {She} took a deep breath instead.",
        "\"I cannot,\" thought {hero}. \"But I must.\"",
        "{Hero} closed {her} eyes, counted to five, and opened them again.",
    ],
    &[
        "With {tool} under {her} arm {she} went out, one step and then another.",
        "{She} took {tool}, held it tight, and went straight ahead.",
    ],
    &[
        "\"Hold on!\" {she} called, and a moment later {friend} was safe.",
        "It was over before {she} could be afraid again: {friend} was free.",
    ],
    &[
        "\"Weren't you scared?\" asked {friend}. \"Yes,\" said {hero}, \"the whole time.\"",
        "\"You are the bravest {kind} I know,\" said {friend}, and {hero} turned {shade}.",
    ],
    &[
        "Since then {hero} knows that being brave does not mean having no fear.",
        "{She} was still a little afraid of {fear}, but never again so much.",
        "That night {she} slept better than {she} had in weeks.",
    ],
];

const SHARING: &[&[&str]] = &[
    &[
        "One {weather} {season} day {hero} baked {cake} and put it on the window sill.",
        "It was {a weather} {season} morning, and {hero} had just made {cake}.",
        "On {her} birthday {hero} got {cake}, and {she} had waited for it all year.",
    ],
    &[
        "The smell drifted {path}.",
        "It smelled so good that {her} mouth began to water.",
    ],
    &[
        "Just then there was a knock at the door. Outside stood {a trait_b} {fkind}.",
        "Before {she} could take the first bite, {a fkind} came along the road, thin and tired.",
    ],
    &[
        "\"I am {friend},\" said the {fkind}. \"I have walked all night, and I am so hungry.\"",
        "\"My name is {friend},\" the {fkind} said quietly. \"Could you spare a crumb?\"",
    ],
    &[
        "{Hero} looked at the plate. There was not very much on it.",
        "{Hero} thought about it for a moment. {She} had been looking forward to it so much.",
    ],
    &[
        "Then {she} fetched a knife and cut it right through the middle.",
        "\"Come in,\" {she} said, and put a second plate on the table.",
    ],
    &[
        "They ate and talked until the {drink} was cold.",
        "{Friend} ate every crumb and told {obj} about {goal}.",
    ],
    &[
        "In the morning the guest was gone, but on the table lay {present}.",
        "A week later the post brought a parcel. Inside was {present}, and a note that said: for half of everything.",
    ],
    &[
        "\"I gave away half,\" thought {hero}, \"and now I have more than before.\"",
        "{Hero} has kept a second plate on the table ever since.",
        "And whenever {friend} passed by again, there was a place at the table.",
    ],
];

const GIFT: &[&[&str]] = &[
    &[
        "Soon it would be the birthday of {her} best friend, {friend} the {fkind}.",
        "{Friend} the {fkind} was {her} best friend, and tomorrow was {fher} birthday.",
    ],
    &[
        "{Hero} wanted to give {fobj} something special.",
        "\"It has to be the best present of all,\" {she} thought.",
    ],
    &[
        "First {she} tried to knit {clothing}, but it came out with three sleeves.",
        "First {she} tried to paint a picture of {goal}, but the colours ran together into one big brown spot.",
        "First {she} wrote a poem, but nothing would rhyme with {fkind}.",
    ],
    &[
        "Then {she} wanted to bake {cake}, but it burned as black as coal.",
        "Then {she} carved {a treasure} out of wood, and it broke in two.",
    ],
    &[
        "Now there was no time left. {Hero} felt {sad}.",
        "The clock struck, and {hero} still had nothing in {her} hands.",
    ],
    &[
        "On the way {she} picked {flowers}, because they were growing right beside the road.",
        "All that {she} could find was {flowers}, so {she} took that.",
    ],
    &[
        "\"I am sorry,\" {she} said at the door. \"I tried so hard, and this is all I have.\"",
        "{Hero} hid it behind {her} back and blushed. \"It is not much,\" {she} whispered.",
    ],
    &[
        "But {friend} beamed. \"You came!\" {fshe} cried. \"That is what I wished for.\"",
        "{Friend} smelled at it and smiled. \"Nobody ever picked anything for me before,\" {fshe} said.",
    ],
    &[
        "They played {game} until it was dark, and it was the best birthday of the whole year.",
        "And when {hero} told {fobj} about everything that had gone wrong, they laughed until they cried.",
    ],
];

const CONTEST: &[&[&str]] = &[
    &[
        "Every {season} the village held a great {contest}, and the prize was {prize}.",
        "The whole village talked about the great {contest}. Whoever won would get {prize}.",
    ],
    &[
        "This year {hero} wanted to win. {She} practised every day {far}.",
        "{Hero} had come last three times. This time everything would be different.",
    ],
    &[
        "On {a weather} morning the crowd gathered, a whistle blew, and it began.",
        "The day came. It was {weather}, and flags were flying from every roof.",
    ],
    &[
        "{Hero} was doing better than ever. Soon {she} was ahead of all the others.",
        "Everything went well, and {hero} could already see {prize} before {her} eyes.",
    ],
    &[
        "Then {she} saw {friend} the {fkind}, who {trouble}.",
        "Suddenly there was a cry. {Friend}, {a trait_b} {fkind}, {trouble}.",
    ],
    &[
        "The others did not notice, or did not want to notice.",
        "\"Somebody else will help,\" thought {hero}. But nobody did.",
    ],
    &[
        "{Hero} stopped, turned around, and went to help.",
        "So {hero} left everything and ran to {fher} side.",
    ],
    &[
        "When it was all over, somebody else had won the prize.",
        "By the time {friend} was safe, the {contest} was over.",
    ],
    &[
        "\"You lost because of me,\" said {friend}. \"I did not lose anything,\" said {hero}, and meant it.",
        "In the evening the whole village sang for {hero}, and that was worth more than any prize.",
        "\"Next year we will enter together,\" said {friend}. And so they did.",
    ],
];

const NOISE: &[&[&str]] = &[
    &[
        "One {weather} night {hero} woke up. From {room} came a strange sound: {sound}.",
        "In the middle of {a weather} {season} night {she} heard something in {room}. It went {sound}.",
    ],
    &[
        "\"Who is there?\" {she} called. Nobody answered.",
        "{She} pulled the blanket up to {her} chin and listened.",
    ],
    &[
        "{Sound}, it went again, a little louder.",
        "For a moment it was quiet. Then it came once more: {sound}.",
    ],
    &[
        "\"Perhaps it is a ghost,\" {she} thought, \"or a robber, or the wind.\"",
        "{Hero} thought of every monster in {her} picture books.",
    ],
    &[
        "With {tool} in {her} hand {she} crept down the stairs.",
        "At last {she} lit a candle, took {tool}, and tiptoed to {room}.",
    ],
    &[
        "And there, behind {hiding}, sat {a small} {fkind}.",
        "There was no ghost and no robber. There was only {a small} {fkind}.",
    ],
    &[
        "\"Please do not be angry,\" said the {fkind}. \"My name is {friend}. It is so cold outside.\"",
        "\"I am {friend},\" said the {fkind}, shivering. \"I only wanted to get warm.\"",
    ],
    &[
        "{Hero} laughed with relief and made a bed out of {clothing}.",
        "{Hero} warmed some {drink} and brought {food}.",
    ],
    &[
        "Since then there are two of them in the house, and no sound is strange any more.",
        "Now when something goes {sound} in the night, {hero} just smiles and goes back to sleep.",
        "{Friend} stayed until spring, and they are friends to this day.",
    ],
];

const GARDEN: &[&[&str]] = &[
    &[
        "One day {she} found {a colour} seed {far}.",
        "A merchant gave {obj} {a colour} seed and would not say what it was.",
    ],
    &[
        "{Hero} planted it behind the house and watered it every morning.",
        "{She} put it into the ground, drew a circle of stones around it, and waited.",
    ],
    &[
        "A week went by, and then another. Nothing happened.",
        "Days passed. It rained, it was sunny, it rained again, and still there was nothing to see.",
    ],
    &[
        "\"It is dead,\" said {friend} the {fkind}. \"Plant something better.\"",
        "{Friend}, {a trait_b} {fkind}, shook {fher} head. \"That will never grow,\" {fshe} said.",
    ],
    &[
        "But {hero} went on watering. \"Some things take time,\" {she} said.",
        "{Hero} only smiled and fetched some more water.",
    ],
    &[
        "Then, on {a weather} {season} morning, there was a tiny green leaf.",
        "And one morning the earth had opened, and something green looked out.",
    ],
    &[
        "It grew and grew, past the window, past the roof, until it bore {fruit}.",
        "By the end of the year it was taller than the house and full of {fruit}.",
    ],
    &[
        "{Friend} could not believe {fher} eyes. \"I was wrong,\" {fshe} said.",
        "\"How did you know?\" asked {friend}. \"I did not know,\" said {hero}. \"I hoped.\"",
    ],
    &[
        "There was enough for the whole village, and every child was given one seed to plant.",
        "They sat in its shade, ate {fruit}, and were glad that somebody had been patient.",
    ],
];

const LETTER: &[&[&str]] = &[
    &[
        "One {weather} {season} day the wind blew a letter right in front of {her} door.",
        "While {hobby}, {hero} found a bottle with a letter inside.",
    ],
    &[
        "It said: \"Is anybody out there? I have nobody to talk to. {Friend}.\"",
        "The writing was so small that {she} needed a glass. \"I am alone,\" it said, \"and I would like a friend. {Friend}.\"",
    ],
    &[
        "{Hero} did not know anybody of that name.",
        "There was no address, only a drawing of {landmark}.",
    ],
    &[
        "So {she} asked the miller, the baker and the old ferryman, and none of them could help.",
        "{She} asked everyone {she} met, and everyone shrugged.",
    ],
    &[
        "Then {she} remembered {landmark} {far}, and {she} took {tool} and ran.",
        "But a swallow had seen {landmark} {far}, and told {obj} the way.",
    ],
    &[
        "There, beside {landmark}, sat {a trait_b} {fkind} and looked at the clouds.",
        "And really, next to {landmark} lived {a fkind}, all alone.",
    ],
    &[
        "\"Are you {friend}?\" asked {hero}. \"I came to answer your letter.\"",
        "{Hero} held up the letter. The {fkind}'s eyes grew wide.",
    ],
    &[
        "They talked the whole afternoon, about {goal}, about {food}, about everything.",
        "{Friend} laughed for the first time in a long while, and they played {game}.",
    ],
    &[
        "Now they write to each other every week, and on Sundays they drink {drink} together.",
        "And the letter? It hangs in a frame above {her} bed.",
        "\"I thought nobody would ever read it,\" said {friend}. \"I almost did not,\" said {hero}. \"What luck that the wind did.\"",
    ],
];
