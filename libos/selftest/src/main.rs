//! Tests libos on the machine it is for: an image that runs in QEMU (see `tests/qemu.rs`).
//!
//! Without options it runs all tests of `checks`, `programs` and `user`, one report line each. With
//! `crash=NAME` it breaks in that way, and what the kernel says of it is the test.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod checks;
#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod programs;
#[cfg(target_os = "none")]
mod user;

libos::entry!(run);

#[cfg(target_os = "none")]
async fn run(boot: libos::Boot) -> libos::Exit {
    if let Some(how) = boot.command_line.value("crash") {
        return crash::crash(how);
    }
    let tests = [
        ("frames", checks::frames()),
        ("random", checks::random_bytes_differ()),
        ("sleep", checks::sleep_lasts().await),
        ("yield", checks::yielding_lets_others_run().await),
        ("cores", checks::tasks_run_on_their_core().await),
        ("wakeups", checks::no_wakeup_is_lost().await),
        ("segments", checks::other_segments_are_searched()),
        ("interrupt", checks::a_device_interrupts().await),
        ("disk", checks::a_disk_works().await),
        ("console", checks::a_console_echoes().await),
        ("syscall", programs::a_system_call_and_its_result()),
        ("faults", programs::faults_say_what_was_touched()),
        ("exceptions", programs::exceptions_come_back()),
        (
            "non_canonical",
            programs::a_wild_return_address_is_an_exception(),
        ),
        ("marks", programs::dirty_and_accessed_marks()),
        ("fpu", programs::vector_registers_are_each_programs_own()),
        ("bases", programs::segment_bases_are_each_programs_own()),
        ("preempt", programs::a_loop_is_preempted().await),
        (
            "shootdown",
            programs::an_unmapped_page_is_gone_on_every_core().await,
        ),
    ];
    for (name, result) in &tests {
        match result {
            Ok(()) => libos::report("test", format_args!("{name}\tok")),
            Err(why) => libos::report("test", format_args!("{name}\tfailed\t{why}")),
        }
    }
    // Last, as what fails there panics.
    user::run().await;
    if tests.iter().all(|(_, result)| result.is_ok()) {
        libos::Exit::Success
    } else {
        libos::Exit::Failure
    }
}
