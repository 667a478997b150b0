//! Conversations that outgrow their model: a provider that counts tokens in its own way and refuses
//! what is too long stands on the other side, and no turn may fail by that.

use mainspring_session::{
    AgentSpec, CallIndex, CompactionMethod, CompactionReason, ContextCompacted, Event, Fact,
    Message, Part, Phase, State, Usage, decide,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::play::config;
use crate::support::{NOW, Session, agent};
use crate::{event, fact};

/// How a provider counts.
#[derive(Debug, Clone, Copy)]
struct Provider {
    /// Tokens that it reads in one call; it refuses longer ones.
    window: u64,
    /// Bytes of text that it makes ten tokens of.
    bytes_per_ten: u64,
    /// Tokens of instructions and tools.
    always: u64,
    /// Tokens of a picture.
    picture: u64,
    /// Whether it says how many tokens it has read.
    counts: bool,
}

impl Provider {
    fn tokens(&self, session: &Session) -> u64 {
        let of_text = |text: &str| text.len() as u64 * 10 / self.bytes_per_ten;
        let of_part = |part: &Part| match part {
            Part::Text { text } => of_text(text),
            Part::Image { .. } => self.picture,
        };
        let sent = session.state.sent();
        let messages = sent.iter().map(|message| {
            4 + match message.as_ref() {
                Message::User { content } => content.iter().map(of_part).sum(),
                Message::Assistant { text, tool_calls, .. } => {
                    let calls = tool_calls.iter();
                    let calls =
                        calls.map(|call| 8 + of_text(&call.name) + of_text(&call.arguments));
                    of_text(text) + calls.sum::<u64>()
                }
                Message::Tool { text, .. } => 8 + of_text(text),
            }
        });
        self.always + messages.sum::<u64>()
    }

    /// Answers the call under way.
    fn answer(&self, session: &mut Session, text: &str, calls: usize) -> bool {
        let Phase::Calling(call) = session.state.phase else { panic!("no call is under way") };
        let tokens = self.tokens(session);
        if tokens > self.window {
            tell(session, fact::model_failed(call.step, call.attempt, fact::overflow()));
            return false;
        }
        let first = usize::try_from(session.state.tool_call_count).unwrap();
        let mut answer = fact::calls(first, &vec!["look"; calls]);
        text.clone_into(&mut answer.text);
        let mut answered = fact::answered(call.step, call.attempt, answer);
        if let Fact::ModelAnswered { usage, .. } = &mut answered {
            let input_tokens = if self.counts { tokens } else { 0 };
            *usage = Usage { input_tokens, output_tokens: 10, ..Usage::default() };
        }
        tell(session, answered);
        true
    }

    /// Brings the turn to its end; panics if it fails.
    fn finish(&self, session: &mut Session) {
        for _ in 0..200 {
            match session.state.phase.clone() {
                Phase::Ready => {
                    let ended = session.log.last().unwrap();
                    assert_eq!(ended.kind(), "session_finished", "{ended:?}");
                    return;
                }
                Phase::Summarising(summary) => {
                    // The words of a summary are no fewer than asked for.
                    let read = session.state.to_summarise(&summary);
                    assert!(read.len() as u64 <= summary.bytes_max + 100, "{}", read.len());
                    tell(session, fact::summarised(summary.step, &"and so on ".repeat(400)));
                }
                _ => {
                    self.answer(session, "done", 0);
                }
            }
        }
        panic!("the turn does not end");
    }
}

fn roomy(window: Option<u64>) -> AgentSpec {
    let mut spec = agent(&["small"]);
    spec.models[0].context_tokens = window;
    spec.limits.steps_max = 100_000;
    spec.limits.tokens_max = u64::MAX;
    spec.limits.tool_calls_per_step_max = 100_000;
    spec.limits.tool_result_bytes_max = u64::MAX;
    spec
}

/// Tells a fact without folding the whole log again each time: these logs are long.
fn tell(session: &mut Session, fact: Fact) {
    let events = decide(&mut session.state, &session.spec, fact, NOW).unwrap();
    session.log.extend(events);
}

/// A piece of a history.
#[derive(Debug, Clone)]
enum Piece {
    /// The user says so many bytes, and the model so many.
    Talk(usize, usize),
    /// A step of so many tool calls, each with a result of so many bytes.
    Step(usize, usize),
    /// The user shows so many pictures.
    Pictures(usize),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        3 => (0..3_000_usize, 0..3_000_usize).prop_map(|(said, told)| Piece::Talk(said, told)),
        4 => (1..8_usize, 0..6_000_usize).prop_map(|(calls, bytes)| Piece::Step(calls, bytes)),
        1 => (1..30_usize).prop_map(Piece::Pictures),
        1 => (0..2_usize).prop_map(|_| Piece::Talk(90_000, 10)),
        1 => (0..2_usize).prop_map(|_| Piece::Talk(10, 90_000)),
        1 => (0..2_usize).prop_map(|_| Piece::Step(1, 90_000)),
        1 => (0..2_usize).prop_map(|_| Piece::Step(400, 30)),
    ]
}

/// The text of so many bytes, of one, two and three bytes a character.
fn text(bytes: usize) -> String {
    "the ä quick ⚙ fox. ".repeat(bytes / 22 + 1)
}

/// Lets a history happen, whatever the provider refuses on the way.
fn live_through(session: &mut Session, provider: &Provider, piece: &Piece) {
    let content = match piece {
        Piece::Pictures(count) => {
            let picture = Part::Image { url: "https://example.org/a.png".to_owned() };
            vec![picture; *count]
        }
        Piece::Talk(said, _) => vec![Part::Text { text: text(*said) }],
        Piece::Step(..) => vec![Part::Text { text: "go on".to_owned() }],
    };
    tell(session, Fact::Input { content, step_class: None });
    let (told, calls, bytes) = match piece {
        Piece::Talk(_, told) => (text(*told), 0, 0),
        Piece::Step(calls, bytes) => (String::new(), *calls, *bytes),
        Piece::Pictures(_) => ("a spring".to_owned(), 0, 0),
    };
    for _ in 0..100 {
        match session.state.phase.clone() {
            Phase::Summarising(summary) => {
                tell(session, fact::no_summary(summary.step));
            }
            Phase::Calling(_) if provider.answer(session, &told, calls) => break,
            Phase::Calling(_) => {}
            other => panic!("{other:?} after {:?}", session.log.last()),
        }
    }
    let open: Vec<CallIndex> = session.state.calls().iter().map(|call| call.index).collect();
    for call in open {
        tell(session, fact::returned(call.0, 1, &text(bytes)));
    }
    provider.finish(session);
}

fn provider() -> impl Strategy<Value = Provider> {
    (2_000..9_000_u64, 20..60_u64, 0..600_u64, any::<bool>()).prop_map(
        |(window, bytes_per_ten, always, counts)| Provider {
            window,
            bytes_per_ten,
            always,
            picture: 1_000,
            counts,
        },
    )
}

proptest! {
    #![proptest_config(config(60, 5))]

    #[test]
    fn no_history_makes_a_turn_fail_because_it_is_too_long(
        provider in provider(),
        known in any::<bool>(),
        summarise in any::<bool>(),
        pieces in vec(piece(), 1..24),
    ) {
        let mut spec = roomy(known.then_some(provider.window));
        spec.compaction.summarise = summarise;
        let mut session = Session::started(spec);
        for piece in &pieces {
            live_through(&mut session, &provider, piece);
        }
        prop_assert_eq!(&State::of(&session.log), &session.state, "the log folds to the state");
        let whole: usize = session.state.messages.len();
        prop_assert!(session.state.sent_ranges().last().unwrap().1 as usize == whole);
    }
}

fn compactions(session: &Session) -> Vec<&ContextCompacted> {
    let made = session.log.iter().filter_map(|event| match event {
        Event::ContextCompacted(compacted) => Some(compacted),
        _ => None,
    });
    made.collect()
}

const FOUR: Provider =
    Provider { window: 8_000, bytes_per_ten: 40, always: 100, picture: 1_000, counts: true };

#[test]
fn a_conversation_that_fits_is_sent_whole() {
    let mut session = Session::started(roomy(Some(8_000)));
    for _ in 0..5 {
        live_through(&mut session, &FOUR, &Piece::Talk(1_000, 1_000));
    }
    assert!(compactions(&session).is_empty());
    let sent = session.state.sent();
    assert!(sent.iter().map(AsRef::as_ref).eq(session.state.messages.iter()));
}

#[test]
fn old_tool_results_are_cut_first_and_the_newest_is_kept() {
    let mut session = Session::started(roomy(Some(8_000)));
    for _ in 0..6 {
        live_through(&mut session, &FOUR, &Piece::Step(1, 5_000));
    }
    let first = compactions(&session)[0].clone();
    assert_eq!((first.method, first.reason), (CompactionMethod::Trim, CompactionReason::Window));
    assert!(first.tokens_after <= first.tokens_target && first.tokens_after < first.tokens_before);
    assert!(first.trimmed.iter().all(|trim| trim.bytes == 1_000));
    assert_eq!(first.kept.len(), 1, "nothing is left out: {:?}", first.kept);
    let sent = session.state.sent();
    let results = sent.iter().filter_map(|message| match message.as_ref() {
        Message::Tool { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let results: Vec<_> = results.collect();
    assert!(results[0].len() < 1_100 && results[0].contains("bytes cut"), "{}", results[0]);
    assert_eq!(results.last().unwrap().len(), text(5_000).len(), "the newest is whole");
    let whole = session.state.messages.iter().filter(|message| match message {
        Message::Tool { text: result, .. } => *result == text(5_000),
        _ => false,
    });
    assert_eq!(whole.count(), 6, "the conversation itself stays whole");
}

#[test]
fn a_summary_stands_for_what_is_left_out() {
    let mut session = Session::started(roomy(Some(8_000)));
    for _ in 0..20 {
        live_through(&mut session, &FOUR, &Piece::Talk(900, 900));
    }
    tell(&mut session, fact::input(&text(4_000)));
    while !matches!(session.state.phase, Phase::Summarising(_)) {
        FOUR.finish(&mut session);
        tell(&mut session, fact::input(&text(4_000)));
    }
    let Phase::Summarising(summary) = session.state.phase else { panic!("it is") };
    let read = session.state.to_summarise(&summary);
    assert!(read.contains("User: the ä") && read.contains("Assistant: the ä"), "{read}");
    tell(&mut session, fact::summarised(summary.step, "They spoke of foxes."));
    let compacted = compactions(&session).last().copied().unwrap().clone();
    assert_eq!(compacted.method, CompactionMethod::Summarise);
    assert_eq!(compacted.summary.as_deref(), Some("They spoke of foxes."));
    let sent = session.state.sent();
    let Message::User { content } = sent[0].as_ref() else { panic!("the first input stays") };
    let expected = "[Summary of the conversation since then]\nThey spoke of foxes.";
    assert_eq!(content[1], Part::Text { text: expected.to_owned() });
    assert_eq!(
        event::summarised(summary.step, "They spoke of foxes."),
        session.log[session.log.len() - 3]
    );
}

#[test]
fn compactions_are_far_apart_and_the_view_only_grows_between_them() {
    let mut session = Session::started(roomy(Some(8_000)));
    let mut before: Vec<Message> = Vec::new();
    let (mut generation, mut kept) = (0, 0);
    for _ in 0..200 {
        live_through(&mut session, &FOUR, &Piece::Step(1, 800));
        let sent: Vec<_> = session.state.sent().into_iter().map(|it| it.into_owned()).collect();
        let now = session.state.context.view.generation;
        if now == generation {
            assert_eq!(sent[..before.len()], before[..], "the beginning changed");
            kept += 1;
        }
        (before, generation) = (sent, now);
    }
    let count = compactions(&session).len();
    assert!((2..=20).contains(&count), "{count} compactions in 200 turns");
    assert!(kept >= 180, "{kept} of 200 turns kept their beginning");
}

#[test]
fn a_window_that_nobody_knows_is_found_by_running_into_it_once() {
    let mut session = Session::started(roomy(None));
    for _ in 0..120 {
        live_through(&mut session, &FOUR, &Piece::Talk(900, 900));
    }
    let refused = session.log.iter().filter(|event| match event {
        Event::ModelCallFailed(failed) => failed.error.code.as_str() == "model_context_overflow",
        _ => false,
    });
    assert!((1..=3).contains(&refused.count()));
    assert_eq!(compactions(&session)[0].reason, CompactionReason::Overflow);
    let attempts = session.log.iter().filter_map(|event| match event {
        Event::ModelCallStarted(call) => Some(call.attempt),
        _ => None,
    });
    assert!(attempts.max() <= Some(3));
}

#[test]
fn ten_thousand_calls_in_one_answer_are_cut_down_in_pairs() {
    let mut session = Session::started(roomy(Some(8_000)));
    live_through(&mut session, &FOUR, &Piece::Step(10_000, 30));
    let compacted = compactions(&session)[0];
    assert_eq!(compacted.method, CompactionMethod::Squeeze);
    assert!(!session.state.context.is_boundary(), "calls have been made since");
    let before = session.log.iter().position(|event| event.kind() == "context_compacted");
    let cut = State::of(&session.log[..=before.unwrap()]);
    assert!(cut.context.is_boundary());
    let sent = session.state.sent();
    let calls = sent.iter().map(|message| match message.as_ref() {
        Message::Assistant { tool_calls, .. } => tool_calls.len(),
        _ => 0,
    });
    let results = sent.iter().filter(|it| matches!(it.as_ref(), Message::Tool { .. }));
    let (calls, results) = (calls.sum::<usize>(), results.count());
    assert_eq!(calls, results);
    assert!((1..1_000).contains(&calls), "{calls}");
}

#[test]
fn without_compaction_a_conversation_that_is_too_long_fails() {
    let mut spec = roomy(Some(8_000));
    spec.compaction.enabled = false;
    let mut session = Session::started(spec);
    tell(&mut session, fact::input(&text(90_000)));
    assert!(!FOUR.answer(&mut session, "", 0));
    let failed = event::failed(fact::overflow());
    assert_eq!(session.log.last(), Some(&failed));
}

#[test]
fn a_provider_that_refuses_everything_ends_the_turn_after_so_many_attempts() {
    let never = Provider { window: 0, ..FOUR };
    let mut session = Session::started(roomy(None));
    tell(&mut session, fact::input(&text(90_000)));
    let mut attempts = 0;
    while let Phase::Calling(_) = session.state.phase {
        never.answer(&mut session, "", 0);
        attempts += 1;
        assert!(attempts <= 17, "16 attempts may be refused and answered by a compaction");
    }
    assert_eq!(session.log.last(), Some(&event::failed(fact::overflow())));
}
