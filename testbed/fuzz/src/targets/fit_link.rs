//! FIT: a core's engine between a hostile peer and a device that completes what it likes.

pub(crate) use fit::fuzzing::link as run;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let target = [4_u8, 160, 2];
    let call = [4, 0, 10, 1];
    let bulk = [4, 8, 10, 1];
    let request = [0, 0, 20, 1, 0, 0, 5, 64, 0];
    let reply = |slot: u8| [0, 1, 12, 1, slot, 0, 0, 0, 0];
    let poll = [9];
    let (look, drop) = ([5, 0], [5, 2]);
    let serve = [6, 1, 30, 40];
    let read = [4, 2];
    let sent = [2, 0];
    let again = [8, 4, 160, 2];
    vec![
        [&target[..], &call, &reply(0), &poll, &look].concat(),
        [&target[..], &request, &poll, &serve, &sent, &poll].concat(),
        [
            &target[..],
            &bulk,
            &drop,
            &reply(0),
            &poll,
            &read,
            &read,
            &read,
            &sent,
            &poll,
            &[5, 1],
        ]
        .concat(),
        [
            &target[..],
            &call,
            &[7, 255, 7, 255, 7, 255],
            &poll,
            &look,
            &again,
            &call,
            &reply(0),
            &poll,
        ]
        .concat(),
    ]
}
