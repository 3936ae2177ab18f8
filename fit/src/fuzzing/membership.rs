//! The membership under any events: announcements of nodes with and without the key, calls that
//! fail, members that come and go, in any order and at any time.

use alloc::collections::BTreeMap;

use hal::{Duration, Instant};
use verbs::{Address, Gid, Lid};

use super::Input;
use crate::membership::announcement::{ANNOUNCEMENT_LEN, Announcement};
use crate::membership::proof::Rng;
use crate::membership::{Action, Event, Membership};
use crate::{Change, Cluster, Incarnation, Key, Member, PeerId, PeerName, Role};

/// Actions of one event: one for each node known, and a few.
const MOST_ACTIONS: usize = 1100;

struct Bed {
    machine: Membership,
    cluster: Cluster,
    now: Instant,
    next_peer: u16,
    /// Peers that were reported as members, and not as lost since.
    told: BTreeMap<Gid, PeerId>,
}

fn name(number: u8) -> PeerName {
    let role = [Role::Processor, Role::Memory, Role::Storage][usize::from(number % 3)];
    let mut gid = [0; 16];
    gid[15] = number;
    PeerName {
        role,
        gid: Gid(gid),
    }
}

impl Bed {
    fn on(&mut self, event: Event<'_>) {
        let actions = self.machine.on(event, self.now);
        assert!(actions.len() <= MOST_ACTIONS, "{} actions", actions.len());
        for action in actions {
            match action {
                Action::Tell(Change::Joined(peer, member)) => {
                    let before = self.told.insert(member.name.gid, peer);
                    assert_eq!(before, None, "joined twice without being lost");
                }
                Action::Tell(Change::Lost(peer, member)) => {
                    assert_eq!(
                        self.told.remove(&member.name.gid),
                        Some(peer),
                        "lost, and never joined"
                    );
                }
                Action::Probe(peer) | Action::Drop(peer) => {
                    assert!(self.told.values().any(|told| *told == peer), "no member");
                }
                Action::Announce(bytes) => {
                    Announcement::decode(&*bytes, &self.cluster)
                        .expect("its own announcements are ones");
                }
                Action::Call(_) => {}
            }
        }
        let view = self.machine.view();
        assert!(view.agreeing <= view.members.len());
        let members: BTreeMap<Gid, PeerId> = view
            .members
            .iter()
            .map(|(peer, member)| (member.name.gid, *peer))
            .collect();
        assert_eq!(members, self.told, "the view is what was told");
        let counters = *self.machine.counters();
        assert_eq!(counters.nr_joined - counters.nr_lost, members.len() as u64);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let number = input.u8();
        match input.u8() % 9 {
            0 | 1 => {
                let member = Member {
                    name: name(number),
                    incarnation: Incarnation((input.u8() % 4).into()),
                    capacity: input.u16().into(),
                };
                let address = Address::from(Lid(u16::from(input.u8() % 8)));
                let flags = input.u8();
                let announcement = Announcement {
                    member,
                    address,
                    message_version: u16::from(flags & 0x40 != 0),
                    leaves: flags & 1 == 1,
                    sequence: if flags & 2 == 2 {
                        u64::MAX
                    } else {
                        input.u8().into()
                    },
                    members: 1,
                    digest: if flags & 4 == 4 {
                        self.machine.view().digest
                    } else {
                        0
                    },
                };
                let from = if flags & 8 == 8 {
                    Lid(77).into()
                } else {
                    address
                };
                self.on(Event::Heard(from, &announcement.encode(&self.cluster)));
            }
            2 => {
                let mut bytes = [0; ANNOUNCEMENT_LEN];
                let taken = input.bytes(number.into());
                let len = taken.len().min(ANNOUNCEMENT_LEN);
                bytes[..len].copy_from_slice(&taken[..len]);
                self.on(Event::Heard(Lid(1).into(), &bytes[..len]));
            }
            3 | 4 => {
                let peer = PeerId(self.next_peer);
                self.next_peer = self.next_peer.wrapping_add(1);
                let member = Member {
                    name: name(number),
                    incarnation: Incarnation((input.u8() % 4).into()),
                    capacity: 1,
                };
                self.on(Event::Admitted(
                    peer,
                    member,
                    Lid(u16::from(input.u8() % 8)).into(),
                ));
            }
            5 => {
                let refused = input.u8() & 1 == 1;
                self.on(Event::CallFailed {
                    gid: name(number).gid,
                    refused,
                });
            }
            6 => self.on(Event::Lost(PeerId(number.into()))),
            7 => self.on(Event::CalledAgain(name(number).gid)),
            _ if number == 0xff => self.on(Event::Leave),
            _ => {
                let millis = u64::from(number) << (input.u8() % 16);
                self.now = self.now + Duration::from_millis(millis);
                self.on(Event::Tick);
            }
        }
    }
}

/// Events from the input, each looked at.
pub fn membership(bytes: &[u8]) {
    let mut input = Input(bytes);
    let cluster = Cluster::new("fuzz", Key::new([7; Key::LEN]));
    let me = Member {
        name: name(5),
        incarnation: Incarnation::default(),
        capacity: 1,
    };
    let now = Instant::from_nanos(input.u64() >> 1);
    let mut machine = Membership::new(me, 0, cluster, Rng::new([3; 32]), now);
    machine.set_port(me.name.gid, Lid(3).into());
    let mut bed = Bed {
        machine,
        cluster,
        now,
        next_peer: 0,
        told: BTreeMap::new(),
    };
    while !input.is_empty() {
        bed.step(&mut input);
    }
}
