//! Links, switch, subnet manager and subnet administrator of the modelled InfiniBand fabric.
#![forbid(unsafe_code)]
