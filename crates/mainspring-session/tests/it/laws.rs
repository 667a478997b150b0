//! What no sequence of facts may break: right, wrong, stale, doubled and reordered facts, people
//! who decide, a crash at any point, copies, a fork of any prefix. `world.rs` and `ledger.rs` hold
//! the laws, `play.rs` the moves.
//!
//! The seeds are fixed, so that a run is the same everywhere; a found case becomes a test.

use proptest::prelude::*;

use crate::play::{acts, agents, config, run};
use crate::world::Owner;

proptest! {
    #![proptest_config(config(1500, 1))]

    #[test]
    fn no_sequence_of_facts_breaks_a_law_and_every_turn_can_end(spec in agents(), acts in acts()) {
        let mut world = run(spec, &acts);
        world.drain();
        let spoken = !world.state.messages.is_empty();
        prop_assert!(world.state.outcome.is_some() == spoken, "a fork may come before all input");
    }
}

proptest! {
    #![proptest_config(config(200, 2))]

    #[test]
    fn every_prefix_of_a_log_can_be_taken_up_and_brought_to_its_end(
        spec in agents(),
        acts in acts(),
    ) {
        let world = run(spec, &acts);
        for length in world.lengths() {
            let mut next = world.cut(length);
            next.crash(true, Owner { copy: length % 3 == 0, held: length % 5 == 0 });
            next.carry_out();
            next.drain();
        }
    }

    #[test]
    fn every_prefix_of_a_log_can_be_forked_and_brought_to_its_end(
        spec in agents(),
        acts in acts(),
    ) {
        let world = run(spec, &acts);
        for length in 1..=world.log.len() {
            let mut fork = world.clone();
            fork.fork(length, None);
            fork.drain();
        }
    }

    #[test]
    fn the_same_facts_lead_to_the_same_log(spec in agents(), acts in acts()) {
        prop_assert_eq!(run(spec.clone(), &acts).log, run(spec, &acts).log);
    }
}
