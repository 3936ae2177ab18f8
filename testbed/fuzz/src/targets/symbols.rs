//! ksyms: an image's table of symbols.

use ksyms::Table;

use crate::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let address = input.u64();
    let bytes = input.rest();
    let Some(table) = Table::parse(bytes) else {
        return;
    };
    if let Some((name, offset)) = table.lookup(address) {
        assert!(name.len() <= bytes.len() && offset <= address);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let names = b"\x01\0a\x02\0bc";
    let entries = [0_u32, 0, 0x10, 3].map(u32::to_le_bytes).concat();
    let table = [
        &0x1010_u64.to_le_bytes()[..],
        b"KSYM",
        &[2, 0, 0, 0],
        &0x1000_u64.to_le_bytes(),
        &entries,
        names,
    ];
    vec![table.concat()]
}
