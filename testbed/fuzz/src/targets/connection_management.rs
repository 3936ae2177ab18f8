//! mad: a CM message that is parsed and built again must be the same.

use mad::cm::CmMessage;
use mad::{Header, MAD_LEN, Mad};

use crate::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mad: Mad = Input::new(bytes).array::<MAD_LEN>();
    if let Ok((transaction, message)) = CmMessage::parse(&mad) {
        let again = message.to_mad(transaction);
        assert_eq!(CmMessage::parse(&again), Ok((transaction, message)));
    }
    assert_eq!(
        Header::parse(bytes).is_ok(),
        bytes.len() == MAD_LEN && bytes[0] == 1
    );
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Base version, class 7 (CM), class version 2, Send; then each attribute of Linux `enum
    // cm_msg_attr_id`.
    (0x10..=0x1a)
        .map(|attribute| {
            let mut mad = vec![0x5a; MAD_LEN];
            mad[..24].fill(0);
            mad[..4].copy_from_slice(&[1, 7, 2, 3]);
            mad[17] = attribute;
            mad
        })
        .collect()
}
