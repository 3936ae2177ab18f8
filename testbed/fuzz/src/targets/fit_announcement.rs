//! FIT: announcements to the cluster's multicast group, by a peer with the key and by one without.

pub(crate) use fit::fuzzing::announcement as run;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let good = |sealed: u8| {
        let mut bytes = vec![0; 97];
        bytes[..3].copy_from_slice(&[sealed, 1, 2]);
        bytes
    };
    vec![good(0), good(1)]
}
