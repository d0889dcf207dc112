"""From a launch line, as typed, to what Isthmus knows of that side: `describe.describe`.

The engines' own words and their meaning are data (`catalogue/data/engines`); here they are read and applied. Imports no
engine and no torch.
"""
