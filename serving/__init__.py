"""What is deployed: the Plan and everything that is rendered from it. Imports none of the others."""
