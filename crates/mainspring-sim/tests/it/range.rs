//! A range of seeds, the same every time. `make sim` runs others.

use crate::check;

#[test]
fn every_invariant_holds_in_the_first_seeds() {
    (0..200).for_each(check);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    for seed in [2, 3, 26, 110] {
        assert_eq!(mainspring_sim::run(seed), mainspring_sim::run(seed), "seed {seed}");
    }
}
