//! mad and fabric: SMPs by any card, to the switch, its agent, the subnet manager and the other
//! cards.

use fabric::{FabricConfig, Manager, SM_LID};
use hal::Duration;
use mad::MAD_LEN;
use mad::smp::{PERMISSIVE_LID, Smp};
use verbs::Lid;

use super::fabric_bed::{Bed, datagram};
use crate::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let manager = if input.bool() {
        Manager::Own
    } else {
        Manager::Foreign
    };
    let config = FabricConfig {
        manager,
        ..FabricConfig::default()
    };
    let mut bed = Bed::new(config, 3);
    while !input.is_empty() {
        let port = bed.port(input.u8());
        let dlid = match input.u8() % 4 {
            0 => Lid(PERMISSIVE_LID),
            1 => SM_LID,
            _ => Lid(input.u16()),
        };
        let mut mad = input.array::<MAD_LEN>();
        if input.bool() {
            let class = if mad[1] & 1 == 0 { 1 } else { 0x81 };
            mad[..3].copy_from_slice(&[1, class, 1]);
            mad[3] &= 3;
        }
        if let Ok(smp) = Smp::parse(&mad) {
            assert_eq!(smp.to_mad(), mad);
        }
        let len = if input.u8() == 0xff {
            usize::from(input.u8())
        } else {
            MAD_LEN
        };
        bed.fabric
            .send(bed.now, port, datagram(dlid, 0, &mad[..len.min(MAD_LEN)]));
        bed.settle();
        bed.wait(Duration::from_millis(input.u8().into()));
    }
    bed.wait(Duration::from_secs(5));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Directed routes to the switch and through it, and by LID: Get and Set of the attributes that
    // there are.
    let mut seeds = Vec::new();
    for manager in [0, 1] {
        for attribute in [
            0x10_u8, 0x11, 0x12, 0x14, 0x15, 0x16, 0x17, 0x19, 0x1b, 0x20,
        ] {
            let mut mad = vec![0; MAD_LEN];
            mad[..4].copy_from_slice(&[1, 0x81, 1, 1 + (attribute & 1)]);
            mad[7] = 1;
            mad[17] = attribute;
            mad[32..36].fill(0xff);
            mad[128..131].copy_from_slice(&[0, 1, 2]);
            seeds.push([vec![manager, 1, 0], mad, vec![0, 0, 200]].concat());
        }
    }
    seeds
}
