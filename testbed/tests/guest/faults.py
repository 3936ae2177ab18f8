#!/usr/bin/python3
"""Faults of connections as Linux's verbs see them.

Usage: faults.py CASE. Two queue pairs of this card are connected with each other; the case does something wrong, and demands the
completions and events that InfiniBand (Architecture Specification 1.3, 9.9, 10.10.2 and 11.6) asks of an adapter.
"""

import os
import select
import signal
import sys

import pyverbs.enums as e
from pyverbs.addr import AHAttr
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.srq import SRQ, SrqAttr, SrqInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

ALL = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
DEPTH = 16
# What the makers call errors, as owners of cards have published it (`vendor_syndrome` in the model).
VENDOR = {e.IBV_WC_RETRY_EXC_ERR: 0x81, e.IBV_WC_REM_ACCESS_ERR: 0x88, e.IBV_WC_WR_FLUSH_ERR: 0xF9}

context = Context(name="mlx4_0")
port = context.query_port(1)
pd = PD(context)


class End:
    """A queue pair with a completion queue and memory of its own."""

    def __init__(self, entries=4 * DEPTH, srq=None, rights=ALL):
        self.cq = CQ(context, entries)
        self.mr = MR(pd, 4096, ALL)
        cap = QPCap(max_send_wr=DEPTH, max_recv_wr=DEPTH)
        init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap, srq=srq, sq_sig_all=1)
        attr = QPAttr(port_num=1)
        attr.qp_access_flags = rights
        self.qp = QP(pd, init, attr)
        self.attr = attr

    def connect(self, other):
        self.attr.dest_qp_num = other.qp.qp_num
        self.attr.path_mtu = e.IBV_MTU_1024
        self.attr.max_dest_rd_atomic = 1
        self.attr.max_rd_atomic = 1
        self.attr.min_rnr_timer = 12
        self.attr.timeout = 12
        self.attr.retry_cnt = 2
        self.attr.rnr_retry = 2
        self.attr.ah_attr = AHAttr(dlid=port.lid, port_num=1)
        self.qp.to_rts(self.attr)

    def sge(self, length=64, offset=0, lkey=None):
        return SGE(self.mr.buf + offset, length, self.mr.lkey if lkey is None else lkey)

    def receive(self, length=64, lkey=None):
        self.qp.post_recv(RecvWR(wr_id=1, num_sge=1, sg=[self.sge(length, lkey=lkey)]))

    def send(self, length=64, lkey=None):
        self.qp.post_send(SendWR(wr_id=2, num_sge=1, sg=[self.sge(length, lkey=lkey)], opcode=e.IBV_WR_SEND))

    def remote(self, opcode, address, rkey, length=64):
        wr = SendWR(wr_id=3, num_sge=1, sg=[self.sge(length)], opcode=opcode)
        wr.set_wr_rdma(rkey, address)
        self.qp.post_send(wr)

    def completions(self, count):
        """The statuses of the next completions."""
        found = []
        while len(found) < count:
            number, completions = self.cq.poll(count - len(found))
            for completion in completions[:number]:
                found.append(completion.status)
                if completion.status in VENDOR:
                    demand("vendor's syndrome", completion.vendor_err, VENDOR[completion.status])
        return found

    def expect(self, *statuses):
        found = self.completions(len(statuses))
        demand("completions", found, list(statuses))

    def expect_state(self, state):
        attr, _ = self.qp.query(e.IBV_QP_STATE)
        demand("state", attr.qp_state, state)


def demand(what, found, expected):
    print(f"{what}: {found}")
    if found != expected:
        sys.exit(f"{what}: expected {expected}")


def expect_no_event():
    """Looks at the file of events, as `get_async_event` would wait without end."""
    files = [int(name) for name in os.listdir("/proc/self/fd") if is_of_events(name)]
    # The first packet may come before the receiver is in RTS, which is no fault.
    while select.select(files, [], [], 0.5)[0]:
        event = context.get_async_event()
        demand("event", event.event_type, e.IBV_EVENT_COMM_EST)
        event.ack()


def is_of_events(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[infinibandevent]"
    except OSError:
        # That of the listing itself.
        return False


def expect_events(*types):
    """The next asynchronous events, in any order."""
    found = []
    for _ in types:
        event = context.get_async_event()
        found.append(event.event_type)
        event.ack()
    demand("events", sorted(found), sorted(types))


def pair(**options):
    near, far = End(), End(**options)
    near.connect(far)
    far.connect(near)
    return near, far


def destroyed_peer():
    """Nobody answers, so the retries are spent."""
    near, far = pair()
    far.qp.close()
    near.send()
    near.send()
    near.expect(e.IBV_WC_RETRY_EXC_ERR, e.IBV_WC_WR_FLUSH_ERR)
    near.expect_state(e.IBV_QPS_ERR)


def no_receive():
    """The peer has no receive, and says so until the retries are spent; its queue pair lives."""
    near, far = pair()
    near.send()
    near.expect(e.IBV_WC_RNR_RETRY_EXC_ERR)
    far.expect_state(e.IBV_QPS_RTS)


def access(opcode, place):
    """The responder refuses: its queue pair fails with an event, the requester's with a completion."""
    near, far = pair()
    near.remote(opcode, *place(far.mr))
    near.expect(e.IBV_WC_REM_ACCESS_ERR)
    expect_events(e.IBV_EVENT_QP_ACCESS_ERR)
    near.expect_state(e.IBV_QPS_ERR)
    far.expect_state(e.IBV_QPS_ERR)


def wrong_key_write():
    access(e.IBV_WR_RDMA_WRITE, lambda mr: (mr.buf, mr.rkey ^ 0x5A))


def wrong_key_read():
    access(e.IBV_WR_RDMA_READ, lambda mr: (mr.buf, mr.rkey ^ 0x5A))


def out_of_bounds_write():
    access(e.IBV_WR_RDMA_WRITE, lambda mr: (mr.buf + 4096 - 63, mr.rkey))


def out_of_bounds_read():
    access(e.IBV_WR_RDMA_READ, lambda mr: (mr.buf - 1, mr.rkey))


def read_only_memory():
    mr = MR(pd, 4096, e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ)
    access(e.IBV_WR_RDMA_WRITE, lambda _: (mr.buf, mr.rkey))


def wrong_local_key():
    """The requester's own mistake: nothing reaches the peer."""
    near, far = pair()
    near.send(lkey=near.mr.lkey ^ 0x5A)
    near.expect(e.IBV_WC_LOC_PROT_ERR)
    near.expect_state(e.IBV_QPS_ERR)
    far.expect_state(e.IBV_QPS_RTS)


def short_receive():
    near, far = pair()
    far.receive(16)
    near.send(64)
    far.expect(e.IBV_WC_LOC_LEN_ERR)
    near.expect(e.IBV_WC_REM_INV_REQ_ERR)
    far.expect_state(e.IBV_QPS_ERR)
    expect_no_event()


def wrong_receive_key():
    """The responder's own mistake: its receive says so, and the peer learns that the operation failed there."""
    near, far = pair()
    far.receive(lkey=far.mr.lkey ^ 0x5A)
    far.receive()
    near.send()
    far.expect(e.IBV_WC_LOC_PROT_ERR, e.IBV_WC_WR_FLUSH_ERR)
    near.expect(e.IBV_WC_REM_OP_ERR)
    far.expect_state(e.IBV_QPS_ERR)
    expect_no_event()


def flush():
    """All that was posted comes back when a queue pair is moved to ERR."""
    near, _ = pair()
    for _ in range(3):
        near.receive()
    near.qp.modify(QPAttr(qp_state=e.IBV_QPS_ERR), e.IBV_QP_STATE)
    near.expect(*[e.IBV_WC_WR_FLUSH_ERR] * 3)


def overrun():
    """More completions than entries: the queue fails, and the queue pair with it."""
    near, far = End(entries=3), End()
    near.connect(far)
    far.connect(near)
    for _ in range(DEPTH - 1):
        near.remote(e.IBV_WR_RDMA_WRITE, far.mr.buf, far.mr.rkey)
    expect_events(e.IBV_EVENT_CQ_ERR, e.IBV_EVENT_QP_FATAL)
    near.expect_state(e.IBV_QPS_ERR)


def shared_limit():
    """A shared receive queue that runs low says so once; a queue pair that fails tells when it takes no more of it."""
    srq = SRQ(pd, SrqInitAttr(SrqAttr(max_wr=DEPTH, max_sge=1)))
    near, far = pair(srq=srq)
    for _ in range(4):
        srq.post_recv(RecvWR(wr_id=1, num_sge=1, sg=[far.sge()]))
    srq.modify(SrqAttr(srq_limit=3), e.IBV_SRQ_LIMIT)
    near.send()
    near.send()
    near.expect(e.IBV_WC_SUCCESS, e.IBV_WC_SUCCESS)
    expect_events(e.IBV_EVENT_SRQ_LIMIT_REACHED)
    far.qp.modify(QPAttr(qp_state=e.IBV_QPS_ERR), e.IBV_QP_STATE)
    expect_events(e.IBV_EVENT_QP_LAST_WQE_REACHED)


def main():
    cases = [destroyed_peer, no_receive, wrong_key_write, wrong_key_read, out_of_bounds_write, out_of_bounds_read]
    cases += [read_only_memory, wrong_local_key, wrong_receive_key, short_receive, flush, overrun, shared_limit]
    names = {case.__name__: case for case in cases}
    if len(sys.argv) != 2 or sys.argv[1] not in names:
        sys.exit(f"usage: faults.py {'|'.join(names)}")
    signal.alarm(20)
    names[sys.argv[1]]()


main()
