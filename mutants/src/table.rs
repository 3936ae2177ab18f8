//! All mutants: what each breaks, and the test that must find it.

use crate::{Entry, Test};

macro_rules! mutants {
    ($( ($package:literal, $program:literal, $test:literal) { $($mutant:ident: $breaks:literal,)+ } )+) => {
        /// A small mistake in the product, made on purpose.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[doc = $breaks] $mutant,)+)+
        }

        /// All mutants, by the test that must find them.
        pub const ALL: &[Entry] = &[
            $($(Entry {
                mutant: Mutant::$mutant,
                name: stringify!($mutant),
                breaks: $breaks,
                found_by: Test { package: $package, program: $program, name: $test },
            },)+)+
        ];
    };
}

mutants! {
    // FIT: proofs.
    ("fit", "membership", "proofs::a_request_that_proves_nothing_is_given_nothing") {
        RequestProofIgnored: "A connection request need not prove the cluster's key.",
    }
    ("fit", "membership", "forgery::a_request_that_names_another_port_than_it_comes_from_is_refused") {
        RequestFromAnywhere: "A request may come from another port than it names.",
    }
    ("sim", "runs", "answers_that_a_stranger_gives_for_the_administrator_lead_nobody_astray") {
        AnswerFromAnywhere: "An answer of the subnet administrator may come from any port.",
    }
    ("fit", "membership", "proofs::an_acceptance_that_proves_nothing_is_passed_over") {
        AcceptanceProofIgnored: "An acceptance need not prove the cluster's key.",
    }
    ("fit", "membership", "proofs::a_confirmation_that_proves_nothing_makes_no_member") {
        ConfirmationProofIgnored: "A confirmation need not prove the cluster's key.",
    }
    ("fit", "membership", "proofs::a_disconnection_that_proves_nothing_ends_nothing") {
        DisconnectionProofIgnored: "A disconnection need not prove the cluster's key.",
    }
    ("fit", "membership", "forgery::a_refusal_that_proves_nothing_ends_nothing") {
        RefusalProofIgnored: "A refusal need not prove the cluster's key.",
    }
    ("fit", "membership", "strangers::what_strangers_send_ends_no_connection_and_makes_none") {
        NoncesForgotten: "A request may be played again.",
    }
    ("fit", "lib", "membership::tests::a_duplicate_of_a_member_leads_to_a_probe_and_to_nothing_else") {
        OldAnnouncementTaken: "An announcement may be played again.",
    }
    ("fit", "membership", "memory_that_is_registered_for_one_peer_is_out_of_another_ones_reach") {
        OneDomainForAll: "All peers share one protection domain.",
    }
    // FIT: lives and losses.
    ("fit", "membership", "lanes::lanes_of_two_lives_of_a_node_are_refused") {
        LivesMixed: "Connections of two lives of a node make one peer.",
    }
    ("sim", "runs", "nodes_of_several_cores_that_come_back_with_others_are_one_life_each_and_get_their_memory_back_in_time") {
        LossToldEarly: "A loss is reported before the peer's last queue pair is reset.",
    }
    ("sim", "runs", "lent_memory_stays_lent_until_a_slow_reset_is_done") {
        ToldBeforeReset: "Lent memory is given back before its queue pair is reset.",
    }
    ("sim", "runs", "a_node_whose_queue_pairs_can_not_be_reset_ends_and_gives_nothing_back") {
        FailedResetIgnored: "A queue pair that can't be reset is taken for dead.",
    }
    ("fit", "lib", "turns::tests::all_are_served_in_the_order_in_which_they_came") {
        WaitersOvertaken: "Whoever finds room goes before those who wait.",
        NextNotWoken: "The next in line is not woken when the first has started.",
    }
    ("fit", "lib", "peers::tests::numbers_come_round_without_those_of_live_peers") {
        NumbersOfLivePeersTaken: "A number of peers is given again though its peer is there.",
    }
    ("fit", "lib", "turns::tests::those_who_are_not_polled_hold_the_others_up_for_a_while_only") {
        UnpolledHeadStays: "A first in line that nobody polls keeps its place.",
    }
    ("fit", "membership", "a_peer_whose_connection_fails_is_told_at_once") {
        NoDisconnect: "A peer is not told that its connection was lost.",
    }
    ("sim", "runs", "a_flood_of_datagrams_keeps_the_control_task_from_nothing") {
        DatagramsWithoutBound: "The control task takes datagrams as long as there are any.",
    }
    ("sim", "runs", "handlers_that_compute_and_commands_that_are_refused_cost_no_connection_for_good") {
        RefusedRegionForgotten: "A region that the HCA refused to take back is forgotten.",
    }
    ("sim", "runs", "a_subnet_manager_that_took_over_without_a_word_is_found") {
        ManagerNeverDoubted: "A subnet manager that answers nothing is asked again and again.",
    }
    ("fit", "membership", "a_stopped_node_whose_card_still_answers_is_lost_and_returns_when_it_runs_again") {
        SilenceUnnoticed: "A silent peer is never lost.",
    }
    ("fit", "lib", "tests::limits::a_ping_is_answered") {
        PingsUnanswered: "A ping is not answered.",
    }
    ("fit", "membership", "nodes_that_know_a_name_and_a_key_find_each_other") {
        StaleDigest: "The digest of a view does not follow the view.",
    }
    // FIT: calls, messages and accesses.
    ("fit", "lib", "tests::limits::a_reply_to_an_earlier_call_of_the_slot_answers_nobody") {
        ReplyGenerationIgnored: "A reply may be for an earlier call in its slot.",
    }
    ("fit", "lib", "tests::rules::a_late_reply_touches_nothing") {
        CallDeadlineIgnored: "A call has no deadline.",
        LateCallFreesSlot: "A late call's slot is free before the peer's reply has come.",
    }
    ("fit", "lib", "tests::limits::calls_that_are_given_up_lose_the_peer_only_past_their_deadlines") {
        AbandonedCallsLosePeer: "Calls that were given up lose the peer before their deadlines.",
    }
    ("fit", "lib", "tests::limits::calls_beyond_what_the_peer_takes_wait") {
        CallCreditIgnored: "More calls are made than the peer takes.",
    }
    ("fit", "lib", "tests::rules::no_more_reads_are_outstanding_than_agreed_and_order_is_kept") {
        ReadLimitIgnored: "More READs are posted than the peer answers.",
    }
    ("fit", "lib", "tests::rules::a_late_read_loses_the_connection_and_its_waiter_is_told_last") {
        LentMemoryToldEarly: "A lost READ's waiter is told before the queue pair is dead.",
    }
    ("fit", "lib", "tests::rules::a_call_that_gathers_ends_when_its_request_is_done_too") {
        GatheringNotAwaited: "A call ends though the device may still read what it gathers.",
    }
    ("fit", "lib", "tests::rules::a_peer_that_breaks_the_protocol_is_lost") {
        BusySlotTaken: "A request may come in a slot that is busy.",
    }
    ("fit", "lib", "tests::limits::a_reply_with_more_bulk_than_there_is_room_for_loses_the_connection") {
        LongReplyTaken: "A reply may bring more bulk than its caller takes.",
    }
    ("fit", "lib", "tests::journal::b1_each_receive_is_posted_again_exactly_once") {
        ReceiveNotPostedAgain: "The receive of a reply is not posted again.",
    }
    ("fit", "lib", "tests::limits::a_completion_that_never_comes_loses_the_connection") {
        LostCompletionUnnoticed: "A completion that never comes is not noticed.",
    }
    ("fit", "whole_path", "bulk::one_way_messages_come_once_in_order_and_as_many_as_there_is_room_for") {
        WindowIgnored: "One-way messages are sent beyond the peer's window.",
    }
    ("fit", "lib", "tests::limits::a_receiver_with_nothing_to_say_returns_credit_by_a_message_of_its_own") {
        NoCreditMessages: "A receiver with nothing else to say returns no credit.",
    }
    ("fit", "lib", "one_way::tests::a_peer_that_returns_what_was_never_sent_is_not_believed") {
        AnyCreditBelieved: "A peer may return credit that it was never given.",
    }
    ("fit", "lib", "tests::limits::a_peer_that_overruns_the_window_is_lost") {
        WindowOverrunTaken: "A peer may send more one-way messages than it has credit for.",
    }
    // The driver.
    ("mlx4", "lib", "keys::tests::keys_with_a_secret_follow_no_order_and_are_others_with_another_secret") {
        KeysInOrder: "Keys of memory regions are given in order.",
    }
    ("mlx4", "lib", "work_queue::tests::the_owner_bit_turns_at_each_pass") {
        SendOwnerStands: "The owner bit of a send request does not turn with the ring.",
    }
    ("mlx4", "whole_path", "read_ahead::gathered_requests_are_sent_as_written_when_the_card_reads_ahead") {
        BlocksNotStamped: "Blocks of old requests are not stamped.",
        BlocksShownEarly: "A request's blocks are shown before they are whole.",
    }
    ("mlx4", "lib", "work_queue::tests::an_emptied_ring_shows_the_card_no_receive") {
        ReceiveRecordKept: "A reset queue pair's doorbell record keeps its count.",
    }
    ("mlx4", "lib", "work_queue::tests::a_fence_is_told_to_the_card") {
        FenceFlagLost: "A request's fence is not told to the card.",
    }
    ("mlx4", "whole_path", "reset::a_failed_queue_pair_that_was_reset_works_anew_in_another_domain") {
        SendRingNotEmptied: "A reset queue pair's send ring goes on where it was.",
        OldCompletionsKept: "Completions from before a reset are handed out after it.",
    }
    ("mlx4", "whole_path", "data_path::selective_signalling_over_many_wraps") {
        CompletionsTakenUntold: "The card is not told which completions were taken.",
    }
    ("fit", "lib", "tests::page_cost::counters_wrap_at_16_bits") {
        CompletionPassStands: "The owner bit expected of a completion does not turn with the ring.",
    }
    ("mlx4", "whole_path", "bring_up::the_port_becomes_active") {
        TranslationOff: "A queue's addresses are translated to the page behind.",
    }
    ("mlx4", "whole_path", "data_path::completion_interrupts_wake_the_waiter") {
        EventQueueNotArmed: "An event queue is not armed again.",
    }
    ("mlx4", "whole_path", "failures::remote_access_ends_at_a_region_and_at_its_rights") {
        EveryRegionWritable: "Every region may be written by peers.",
    }
    // pcache.
    ("pcache", "checker", "no_byte_is_wrong_in_a_cache_of_twelve_lines") {
        DirtyMarkLost: "A store is forgotten when the process that made it unmaps the page.",
        SharedZeroForgotten: "A page of zeros is not written back though a child shares it.",
        ForkStaysWritable: "The pages of a parent stay writable after a fork.",
        UserNotDropped: "A slot keeps a user that has a copy of its own now.",
        ShootdownLeftOut: "Cores are not told of translations that are gone.",
        WriteBackOfNothing: "A line counts as written back before its WRITE has ended.",
        ReusedBeforeShootdown: "A line serves another page before its shootdown.",
        SharedPageReused: "A copy-on-write page is written in place though others use it.",
        MappingForgotten: "A line's further mappings are not remembered.",
    }
    ("pcache", "checker", "no_byte_is_wrong_where_much_fits") {
        ProtectionUntold: "Cores are not told of rights that were taken away.",
    }
    ("pcache", "checker", "no_byte_is_wrong_when_transfers_fail_or_are_lost") {
        FailedWriteForgotten: "A page whose WRITE failed counts as clean.",
    }
}
