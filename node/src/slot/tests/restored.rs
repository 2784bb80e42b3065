//! A replica whose log does not go on: it stands still, and begins anew from the state of another one.

use super::*;

fn behind() -> Input {
    Input::Behind(Behind {
        reason: "trimmed".to_owned(),
        least: Offset(9),
        can_replay: false,
    })
}

/// A leader with a write on its way, whose log is found to be gone.
fn left_behind() -> (Bench, RequestId) {
    let mut bench = Bench::leader();
    let id = bench.write();
    bench.step(behind());
    assert_eq!(bench.frozen.as_deref(), Some("trimmed"));
    (bench, id)
}

/// The state of another replica, which has judged claim, command and claim of the leader 1, put together from this cut and one
/// two records later.
fn taken() -> (Loaded, Vec<Bytes>) {
    let log = vec![
        claim(1, 1, None),
        claim(2, 1, Some(0)),
        claim(3, 1, Some(1)),
        claim(4, 1, Some(2)),
        claim(5, 1, Some(3)),
    ];
    let mut position = SlotPosition::start();
    for (offset, bytes) in (0..).zip(&log[..3]) {
        let entry = Entry::read(bytes).expect("reads");
        judge(&mut position, LOG, Offset(offset), &entry, checksum(bytes));
    }
    position.whole_at = Some(Offset(5));
    let dedup = Vec::new();
    (Loaded { position, dedup }, log)
}

#[test]
fn what_is_on_its_way_stays_unknown_and_nothing_is_served() {
    let (mut bench, id) = left_behind();
    assert_eq!(bench.write_answer(id), None, "it may still count");
    let refused = bench.write();
    let answer = bench.write_answer(refused);
    assert!(
        matches!(answer, Some(Err(SlotError::Frozen { .. }))),
        "{answer:?}"
    );
    bench.step(Input::Restored(Some(taken().0)));
    let unknown = Err(SlotError::Unknown { slot: SlotId(3) });
    assert_eq!(bench.write_answer(id), Some(&unknown));
    assert_eq!(bench.machine.view().frozen, None);
}

#[test]
fn a_state_of_two_cuts_is_whole_when_the_log_was_applied_up_to_the_newer_one() {
    let (mut bench, _) = left_behind();
    let (loaded, log) = taken();
    assert_eq!(SlotMachine::follow_from(&loaded.position), Offset(2));
    bench.step(Input::Restored(Some(loaded)));
    bench.log = log;
    bench.consume(Offset(2));
    bench.step(Input::CaughtUp);
    let view = bench.machine.view();
    assert_eq!(
        (view.whole, view.caught_up, view.can_lead),
        (false, false, false)
    );
    bench.consume(Offset(3));
    assert!(!bench.machine.view().whole);
    bench.consume(Offset(4));
    bench.step(Input::CaughtUp);
    let view = bench.machine.view();
    assert_eq!(
        (view.whole, view.caught_up, view.can_lead),
        (true, true, true)
    );
    assert_eq!((view.leader, view.epoch), (Some(NodeId(1)), Epoch(5)));
}

#[test]
fn a_fate_of_the_life_before_is_nobodys() {
    let (mut bench, _) = left_behind();
    let (old, _) = bench.sent.pop().expect("the write was sent");
    let (loaded, log) = taken();
    bench.step(Input::Restored(Some(loaded)));
    bench.log = log;
    for offset in 2..5 {
        bench.consume(Offset(offset));
    }
    bench.step(Input::CaughtUp);
    // The leader is silent: a claim is sent, and its token is a new one.
    bench.hints(|hints| hints.peers[0].alive = false);
    bench.wait(10_000 * MS);
    assert_eq!(bench.kinds_sent(), ["claim"]);
    assert!(bench.sent.iter().all(|(token, _)| *token != old));
    bench.step(Input::Delivered {
        token: old,
        offset: Offset(5),
    });
    assert_ne!(bench.machine.view().role, SlotRole::Leader);
}

#[test]
fn without_a_snapshot_it_goes_on_as_it_was() {
    let mut bench = Bench::at(SlotPosition::start());
    bench.hints(|_| {});
    bench.step(behind());
    bench.step(Input::Restored(None));
    let view = bench.machine.view();
    assert_eq!(
        (view.frozen, view.applied, view.caught_up),
        (None, Offset(0), false)
    );
    bench.append(claim(1, 1, None));
    bench.consume(Offset(0));
    assert_eq!(bench.machine.view().leader, Some(NodeId(1)));
}

#[test]
fn a_snapshot_of_another_log_freezes() {
    let (mut bench, _) = left_behind();
    bench.step(Input::Restored(Some(taken().0)));
    bench.log = vec![claim(1, 2, None); 3];
    bench.frozen = None;
    bench.consume(Offset(2));
    let reason = bench.frozen.as_deref().expect("it stands still");
    assert!(reason.contains("another than the one applied"), "{reason}");
}
