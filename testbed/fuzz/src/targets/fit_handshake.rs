//! FIT: the private data of connection requests, and the proofs in it.

pub(crate) use fit::fuzzing::handshake as run;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut hello = vec![0; 82];
    // In the cluster; MTU code 5; then version, role, serves 16, messages of 4096 bytes.
    hello[..4].copy_from_slice(&[1, 5, 1, 2]);
    hello[8] = 16;
    hello[11] = 16;
    let mut foreign = hello.clone();
    foreign[0] = 0;
    vec![hello, foreign]
}
