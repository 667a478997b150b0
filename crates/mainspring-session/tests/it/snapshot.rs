//! Snapshots: whatever was told, the pieces and the events after them are the whole log.

use mainspring_session::{Event, ForkEdit, Message, State};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::play::{acts, agents, config, run};
use crate::support::{STORE, Session, agent};
use crate::{event, fact};

/// The snapshots of a log after so many events each, as an engine takes them, with the position
/// of each.
fn taken(log: &[Event], positions: &[usize]) -> Vec<(usize, Vec<u8>)> {
    let mut state = State::default();
    let (mut covered, mut pieces) = (0, Vec::new());
    for (event, position) in log.iter().zip(1..) {
        if let Event::SessionForked(forked) = event
            && let Some(ForkEdit::Message { index, .. }) = &forked.edit
        {
            covered = covered.min(*index as usize);
        }
        state.fold(event);
        if positions.contains(&position) {
            pieces.push((position, state.snapshot(covered)));
            covered = state.settled_messages();
        }
    }
    pieces
}

fn restored(pieces: &[(usize, Vec<u8>)]) -> Option<State> {
    State::restore(pieces.iter().map(|(_, body)| body.as_slice()))
}

/// A session of three turns with a snapshot after each.
fn turns() -> (Session, Vec<(usize, Vec<u8>)>) {
    let mut session = Session::started(agent(&["small"]));
    let mut ends = Vec::new();
    for turn in 0..3 {
        session.tell(fact::input(&format!("question {turn}")));
        session.tell(fact::answered(turn, 1, fact::text(&format!("answer {turn}"))));
        ends.push(session.log.len());
    }
    let pieces = taken(&session.log, &ends);
    (session, pieces)
}

proptest! {
    #![proptest_config(config(600, 3))]

    #[test]
    fn the_pieces_and_the_rest_are_the_whole_log(
        spec in agents(),
        acts in acts(),
        picks in vec(any::<usize>(), 1..6),
    ) {
        let log = run(spec, &acts).log;
        let positions: Vec<_> = picks.iter().map(|pick| 1 + pick % log.len()).collect();
        let pieces = taken(&log, &positions);
        for count in 1..=pieces.len() {
            let position = pieces[count - 1].0;
            let mut state = restored(&pieces[..count]).expect("the pieces are whole");
            prop_assert_eq!(&state, &State::of(&log[..position]));
            for event in &log[position..] {
                state.fold(event);
            }
            prop_assert_eq!(state, State::of(&log));
        }
    }
}

#[test]
fn each_piece_holds_only_the_messages_since_the_one_before() {
    let (_, pieces) = turns();
    for (turn, (_, body)) in pieces.iter().enumerate() {
        let text = std::str::from_utf8(body).unwrap();
        for other in 0..3 {
            let held = text.contains(&format!("question {other}"));
            assert_eq!(held, other == turn, "the piece of turn {turn}: {text}");
        }
    }
}

#[test]
fn without_pieces_there_is_no_state() {
    assert_eq!(restored(&[]), None);
}

#[test]
fn a_piece_that_is_missing_or_out_of_order_gives_no_state() {
    let (session, pieces) = turns();
    assert_eq!(restored(&pieces), Some(session.state.clone()));
    for missing in 0..2 {
        let mut rest = pieces.clone();
        rest.remove(missing);
        assert_eq!(restored(&rest), None, "without piece {missing}");
    }
    assert_eq!(restored(&[pieces[1].clone(), pieces[0].clone()]), None);
}

#[test]
fn a_damaged_piece_gives_no_state() {
    let (_, pieces) = turns();
    for position in 0..pieces.len() {
        let whole = &pieces[position].1;
        for length in 0..whole.len() {
            let mut damaged = pieces.clone();
            damaged[position].1.truncate(length);
            assert_eq!(restored(&damaged), None, "piece {position} cut to {length} bytes");
        }
        let mut damaged = pieces.clone();
        damaged[position].1[0] = b'?';
        assert_eq!(restored(&damaged), None);
    }
}

#[test]
fn a_piece_of_another_version_gives_no_state() {
    let (_, pieces) = turns();
    let text = String::from_utf8(pieces[0].1.clone()).unwrap();
    assert!(text.contains(r#""version":1"#), "{text}");
    let newer = text.replacen(r#""version":1"#, r#""version":2"#, 1).into_bytes();
    assert_eq!(State::restore([newer.as_slice()]), None);
}

#[test]
fn a_fork_that_edits_a_message_restores_with_the_edit() {
    let (mut session, mut pieces) = turns();
    let content = vec![mainspring_session::Part::Text { text: "another question".to_owned() }];
    session.tell(fact::forked(Some(ForkEdit::Message { index: 2, content })));
    pieces.push((session.log.len(), session.state.snapshot(2)));
    assert_eq!(restored(&pieces), Some(session.state.clone()));
    assert_eq!(session.state.messages[2], Message::user("another question"));
    assert_eq!(session.state.messages.len(), 6);
    session.tell(fact::taken(4, STORE));
    assert_eq!(session.log.last(), Some(&event::taken(4, STORE)));
}
