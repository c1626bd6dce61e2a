"""5. The stages of phase 1 chained, resumed after a kill, shared by ranks."""
