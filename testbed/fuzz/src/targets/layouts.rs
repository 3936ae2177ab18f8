//! mlx4_hw: every structure that a card or a driver writes. Reading takes any bytes, and each field
//! can be told.

use std::fmt::Debug;

use mlx4_hw::{
    command, cq, eq, extended, icm, init_hca, mgm, mpt, mtt, qp, query_adapter, query_dev_cap,
    query_fw, srq, wqe,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::input::Input;

fn look<T: FromBytes + IntoBytes + Immutable + Debug>(bytes: &[u8]) {
    if let Ok((value, _)) = T::read_from_prefix(bytes) {
        assert_eq!(value.as_bytes(), &bytes[..size_of::<T>()]);
        assert!(!format!("{value:?}").is_empty());
    }
}

fn events(bytes: &[u8]) {
    if let Ok((event, _)) = eq::Eqe::read_from_prefix(bytes) {
        let told = (
            event.number(),
            event.command(),
            event.cq_error(),
            event.port(),
            event.port_management(),
        );
        assert!(!format!("{told:?}").is_empty());
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let which = input.u8();
    // Long structures, of which an input gives the head.
    let mut padded = input.rest().to_vec();
    padded.resize(1024, 0);
    let bytes = &padded[..];
    match which % 16 {
        0 => look::<wqe::ControlSegment>(bytes),
        1 => look::<wqe::MlxControlSegment>(bytes),
        2 => look::<wqe::DatagramSegment>(bytes),
        3 => look::<wqe::DataSegment>(bytes),
        4 => look::<cq::Cqe>(bytes),
        5 => look::<cq::CqContext>(bytes),
        6 => {
            look::<eq::Eqe>(bytes);
            events(bytes);
        }
        7 => look::<eq::EqContext>(bytes),
        8 => look::<qp::QpContext>(bytes),
        9 => {
            look::<mpt::Mpt>(bytes);
            look::<mtt::MttEntry>(bytes);
        }
        10 => look::<query_dev_cap::QueryDevCap>(bytes),
        11 => {
            look::<query_fw::QueryFw>(bytes);
            look::<query_adapter::QueryAdapter>(bytes);
        }
        12 => look::<init_hca::InitHca>(bytes),
        13 => look::<mgm::GroupEntry>(bytes),
        14 => {
            look::<srq::SrqContext>(bytes);
            look::<icm::MapEntry>(bytes);
        }
        _ => {
            look::<extended::FastRegisterSegment>(bytes);
            let doorbell = command::Doorbell::from(Input::new(bytes).u32());
            assert!(!format!("{doorbell:?}").is_empty());
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    (0..16)
        .map(|which| [vec![which], vec![0x5a; 64]].concat())
        .collect()
}
