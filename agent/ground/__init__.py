"""Ground floor: words, limits and codecs. Nothing here touches the world."""
