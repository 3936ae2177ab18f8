//! FIT: the membership under any events.

pub(crate) use fit::fuzzing::membership as run;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let start = [0_u8; 8];
    let heard = [7, 0, 1, 0, 0, 2, 0, 1];
    let again = [7, 0, 2, 0, 0, 2, 0, 2];
    let tick = [200, 8, 3];
    let admitted = [7, 3, 1, 2];
    let lost = [0, 6];
    let leaves = [7, 0, 1, 0, 0, 2, 1, 9];
    vec![
        [
            &start[..],
            &heard,
            &tick,
            &admitted,
            &again,
            &tick,
            &lost,
            &tick,
        ]
        .concat(),
        [
            &start[..],
            &admitted,
            &leaves,
            &lost,
            &heard,
            &tick,
            &[7, 5, 1],
            &tick,
        ]
        .concat(),
        [&start[..], &admitted, &admitted, &[7, 7], &[0xff, 8]].concat(),
    ]
}
