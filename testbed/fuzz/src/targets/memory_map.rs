//! libos: the boot loader's map of the machine's memory.

use libos::PAGE_SIZE;
use libos::memory_map::{MemoryMap, START_INFO_LEN, StartInfo, UEFI_DESCRIPTOR_LEN};

use crate::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let _ = StartInfo::parse(&input.array::<START_INFO_LEN>());
    let uefi = input.bool();
    let map = if uefi {
        let mut map = MemoryMap::default();
        for descriptor in input.rest().chunks(UEFI_DESCRIPTOR_LEN) {
            map.add_uefi(descriptor);
        }
        map
    } else {
        MemoryMap::parse(input.rest())
    };
    let taken = [0x8000..0x9000, 0xa000..0xb000];
    if let Some(found) = map.find(0x4000, 0x1000..0xa_0000, &taken) {
        let end = found + 0x4000;
        assert!(found >= 0x1000 && end <= 0xa_0000);
        assert!(
            taken
                .iter()
                .all(|taken| end <= taken.start || taken.end <= found)
        );
    }
    for region in map.regions() {
        assert!(region.start < region.end && region.end <= map.end());
        assert_eq!((region.start | region.end) % PAGE_SIZE as u64, 0);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seed = vec![0; START_INFO_LEN];
    seed[..8].copy_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
    seed.push(0);
    for (address, size, kind) in [
        (0_u64, 0x9_fc00_u64, 1_u64),
        (0x9_fc00, 0x400, 2),
        (0x10_0000, 0x700_0000, 1),
    ] {
        seed.extend([address, size, kind].map(u64::to_le_bytes).concat());
    }
    vec![seed]
}
