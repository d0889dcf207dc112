"""The demo's chat prompts: short and long, one of them over a thousand tokens."""

__all__ = ["PROMPTS"]

_FACTS = (
    "The lighthouse on the northern cape was built in 1871 from granite that was quarried on the island itself. "
    "Its lamp burned colza oil until 1903, then petroleum vapour, and has been electric since 1957. "
    "The keepers logged the weather every three hours, and their notebooks fill forty shelves in the town archive. "
    "In the winter of 1912 the supply boat could not land for seven weeks, and the keepers lived on dried cod. "
    "The fog signal, a siren driven by compressed air, could be heard for eleven nautical miles in still weather. "
)
_NUMBERS = " ".join(
    f"Entry {number}: wind {number % 9 + 1}, visibility {number * 7 % 20 + 1}, sea {'calm' if number % 3 else 'rough'}."
    for number in range(1, 61)
)

PROMPTS: tuple[str, ...] = (
    "What is the capital of France?",
    "Name three primary colors.",
    "Write one sentence about the sea.",
    "What is 12 plus 30?",
    "Translate 'good morning' to Spanish.",
    "Why is the sky blue? Answer in two sentences.",
    "List the planets of the solar system.",
    "What does a compiler do?",
    "Give me a recipe for pancakes in three steps.",
    "Who wrote Romeo and Juliet?",
    "What is photosynthesis?",
    "Write a haiku about autumn.",
    "Explain what a prime number is to a child.",
    "Which is larger, a whale or an elephant?",
    "What year did the first human walk on the Moon?",
    "Describe a cat in five words.",
    "How many days are there in a leap year?",
    "Tell me a short joke.",
    "What is the boiling point of water at sea level?",
    "Complete the sentence: A journey of a thousand miles",
    "Summarize in one sentence: " + _FACTS,
    "What happened in the winter of 1912? " + _FACTS * 2,
    "Here is a keeper's log. " + _NUMBERS + " " + _FACTS + " When was the lighthouse built?",
)
