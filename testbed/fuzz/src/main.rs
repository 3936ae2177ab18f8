//! Hands the bytes of libFuzzer to a target. `cargo xtask fuzz` starts it.
//!
//! | variable | meaning |
//! |---|---|
//! | `TESSERA_FUZZ_TARGET` | the target's name |
//! | `TESSERA_FUZZ_SEEDS` | a folder that the target's seeds are written to at the start |
//!
//! Without a target it lists them and ends. The arguments are libFuzzer's.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn choose() {
    let Ok(name) = std::env::var("TESSERA_FUZZ_TARGET") else {
        for target in fuzz::TARGETS {
            println!("{}\t{}", target.name, target.max_len);
        }
        std::process::exit(0);
    };
    let target = fuzz::find(&name).unwrap_or_else(|| panic!("no target is called {name}"));
    TARGET.get_or_init(|| target);
    if let Some(folder) = std::env::var_os("TESSERA_FUZZ_SEEDS") {
        write_seeds(target, Path::new(&folder)).expect("the folder takes the seeds");
    }
}

fn write_seeds(target: &Target, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (index, seed) in (target.seeds)().into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{index:02}")), seed)?;
    }
    Ok(())
}

fuzz_target!(init: choose(), |bytes: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(bytes);
    }
});
