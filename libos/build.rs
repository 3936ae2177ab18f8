//! Tells the images' build scripts where the linker script is: they read it as
//! `DEP_LIBOS_LINK_SCRIPT`.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:link_script={}/link.ld", env!("CARGO_MANIFEST_DIR"));
}
