"""Decision 1: where does each stage run? For now the routing policy; costs, pool sizing and search come later."""
