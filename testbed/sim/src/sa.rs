//! The subnet administrator: paths, and the members of multicast groups.

use std::collections::{BTreeMap, BTreeSet};

use mad::sa::{McMemberRecord, PathRecord, SaMad, Selector};
use mad::{Attribute, Method, Status};
use verbs::{Gid, Lid, PKey, Qpn};
use zerocopy::big_endian::U16;

use crate::network::{Body, FIRST_MANAGER, FIRST_MLID, Packet};
use crate::world::{NodeIndex, World};

/// Subnet administrator's state.
pub(crate) struct Administrator {
    /// The port of the subnet manager.
    pub(crate) lid: Lid,
    /// Answers nothing for the time being.
    pub(crate) silent: bool,
    groups: BTreeMap<[u8; 16], Group>,
}

impl Default for Administrator {
    fn default() -> Self {
        Self {
            lid: FIRST_MANAGER,
            silent: false,
            groups: BTreeMap::new(),
        }
    }
}

struct Group {
    mlid: u16,
    members: BTreeSet<NodeIndex>,
}

impl Administrator {
    /// Removes a port from all groups.
    pub(crate) fn forget(&mut self, node: NodeIndex) {
        for group in self.groups.values_mut() {
            group.members.remove(&node);
        }
    }

    /// Returns the group of a multicast LID.
    pub(crate) fn members(&self, mlid: Lid) -> Option<(Gid, Vec<NodeIndex>)> {
        let (mgid, group) = self.groups.iter().find(|(_, group)| group.mlid == mlid.0)?;
        Some((Gid(*mgid), group.members.iter().copied().collect()))
    }

    /// Forgets all members of all groups: the subnet manager restarts.
    pub(crate) fn forget_all(&mut self) {
        self.groups.clear();
    }

    fn join(
        &mut self,
        node: NodeIndex,
        gid: Gid,
        wanted: McMemberRecord,
    ) -> Option<McMemberRecord> {
        if wanted.mgid[0] != 0xff || self.groups.len() >= 64 {
            return None;
        }
        let next = FIRST_MLID + u16::try_from(self.groups.len()).ok()?;
        let group = self.groups.entry(wanted.mgid).or_insert_with(|| Group {
            mlid: next,
            members: BTreeSet::new(),
        });
        group.members.insert(node);
        Some(McMemberRecord {
            port_gid: gid.0,
            mlid: U16::new(group.mlid),
            mtu: Selector::exactly(5),
            rate: Selector::exactly(7),
            ..wanted
        })
    }
}

impl World {
    /// Answers a datagram that came for the administrator.
    pub(crate) fn ask_administrator(&mut self, from: Lid, mad: &mad::Mad) {
        let Ok(request) = SaMad::parse(mad) else {
            return;
        };
        if self.sa.silent || request.header.method.is_response() {
            return;
        }
        let Some(node) = self.by_lid(from) else {
            return;
        };
        let answer = self.administer(node, &request);
        let packet = Packet {
            slid: self.sa.lid,
            dlid: from,
            to: Qpn(1),
            body: Body::Mad(Box::new(answer.to_mad())),
        };
        self.send_datagram(packet);
    }

    fn administer(&mut self, node: NodeIndex, request: &SaMad) -> SaMad {
        let (attribute, method) = (request.header.attribute(), request.header.method);
        let failed = |status| request.into_response(status);
        match (attribute, method) {
            (Attribute::PATH_RECORD, Method::GET) => {
                let found = request
                    .record::<PathRecord>()
                    .and_then(|wanted| self.path(node, &wanted));
                found.map_or(failed(Status::SA_NO_RECORDS), |path| {
                    answered(request, &path)
                })
            }
            (Attribute::MC_MEMBER_RECORD, Method::SET) => {
                let joined = request
                    .record::<McMemberRecord>()
                    .and_then(|wanted| self.sa.join(node, self.nodes[node].gid(), wanted));
                joined.map_or(failed(Status::SA_DENIED), |record| {
                    answered(request, &record)
                })
            }
            (Attribute::MC_MEMBER_RECORD, Method::DELETE) => {
                let wanted = request.record::<McMemberRecord>();
                if let Some(group) = wanted.and_then(|wanted| self.sa.groups.get_mut(&wanted.mgid))
                {
                    group.members.remove(&node);
                }
                failed(Status::OK)
            }
            _ => failed(Status::BAD_ATTRIBUTE),
        }
    }

    fn path(&mut self, from: NodeIndex, wanted: &PathRecord) -> Option<PathRecord> {
        // A port whose machine has not started has a link, but no driver: the subnet knows it all
        // the same.
        let known = |node: &NodeIndex| {
            let gid = self.nodes[*node].gid().0 == wanted.dgid;
            gid && self.net.port_up[*node] && self.net.side[*node] == self.net.sm_side
        };
        let found: Vec<NodeIndex> = (0..self.nodes.len()).filter(known).collect();
        // Of two ports with one GID either may be meant.
        let to = match found[..] {
            [] => return None,
            [to] => to,
            _ => self.rng.pick(&found),
        };
        Some(PathRecord {
            dgid: wanted.dgid,
            sgid: self.nodes[from].gid().0,
            dlid: U16::new(self.nodes[to].lid.0),
            slid: U16::new(self.nodes[from].lid.0),
            reversible_paths: 0x81,
            pkey: U16::new(PKey::DEFAULT.0),
            mtu: Selector::exactly(5),
            rate: Selector::exactly(7),
            life_time: Selector::exactly(12),
            ..PathRecord::default()
        })
    }
}

fn answered<T: zerocopy::IntoBytes + zerocopy::Immutable>(request: &SaMad, record: &T) -> SaMad {
    let mut response = request.into_response(Status::OK);
    response.set_record(record);
    response
}
