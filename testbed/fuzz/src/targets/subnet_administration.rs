//! mad and fabric: requests to the subnet administrator, its tables in segments, and
//! acknowledgements of these.

use fabric::{FabricConfig, SM_LID};
use hal::Duration;
use mad::MAD_LEN;
use mad::sa::{McMemberRecord, NodeRecord, PathRecord, PortInfoRecord, SaMad};

use super::fabric_bed::{Bed, datagram};
use crate::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut bed = Bed::new(FabricConfig::default(), 5);
    while !input.is_empty() {
        let port = bed.port(input.u8());
        let choice = input.u8();
        if choice == 0 {
            let up = input.bool();
            bed.fabric.set_link(bed.now, port, up);
            bed.settle();
            continue;
        }
        let mut mad = [0; MAD_LEN];
        // Header, then RMPP, then the record; the upper part of a record is seldom of interest.
        let head = input.bytes(72);
        mad[..head.len()].copy_from_slice(head);
        let record = input.string();
        let room = record.len().min(MAD_LEN - 72);
        mad[72..72 + room].copy_from_slice(&record[..room]);
        if choice & 1 == 1 {
            mad[..3].copy_from_slice(&[1, 3, 2]);
        }
        if let Ok(sa) = SaMad::parse(&mad) {
            assert_eq!(sa.to_mad(), mad);
            let records = (
                sa.record::<PathRecord>(),
                sa.record::<McMemberRecord>(),
                sa.record::<NodeRecord>(),
                sa.record::<PortInfoRecord>(),
            );
            assert!(
                records.0.is_some()
                    && records.1.is_some()
                    && records.2.is_some()
                    && records.3.is_some()
            );
        }
        bed.fabric.send(bed.now, port, datagram(SM_LID, 1, &mad));
        bed.settle();
        bed.wait(Duration::from_millis(u64::from(input.u8()) * 8));
    }
    bed.wait(Duration::from_secs(10));
    for (_, packet) in &bed.came {
        assert_eq!(packet.payload.len(), MAD_LEN, "an answer is a datagram");
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let step = |method: u8, attribute: u8, mask: u64, record: &[u8]| {
        let mut head = vec![0; 72];
        head[..4].copy_from_slice(&[1, 3, 2, method]);
        head[15] = attribute;
        head[17] = attribute;
        head[48..56].copy_from_slice(&mask.to_be_bytes());
        let len = u8::try_from(record.len()).unwrap_or(0);
        [&[1, 1][..], &head, &[len], record, &[1]].concat()
    };
    let group = |method| step(method, 0x38, 0x1_0003, &[0xff, 0x12, 0x54, 0x53]);
    let ack = {
        let mut ack = step(0x12, 0x11, 0, &[]);
        ack[2 + 24..2 + 27].copy_from_slice(&[1, 2, 1]);
        ack[2 + 35] = 1;
        ack[2 + 39] = 9;
        ack
    };
    vec![
        [step(1, 0x35, 0, &[]), step(0x12, 0x35, 0, &[])].concat(),
        [step(0x12, 0x11, 0, &[]), ack].concat(),
        [step(0x12, 0x12, 0, &[]), step(1, 1, 0, &[])].concat(),
        [group(2), group(1), group(0x12), group(0x15)].concat(),
        vec![0, 0, 0, 0, 0, 1],
    ]
}
