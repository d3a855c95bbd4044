"""The words that every other room uses: volumes, cases, boxes, recipes, runs, evaluations, files and errors."""
