//! What holds for any text and any weights.

use mainspring_route::{
    Candidate, Evidence, Features, Policy, Prices, Step, StepClass, Weights, choose, score, signals,
};
use proptest::prelude::*;

use crate::support::{parsed, texts};

proptest! {
    #[test]
    fn no_text_panics_and_its_numbers_are_finite(text in ".{0,400}") {
        let features = Features::of(&text);
        prop_assert!(features.surface().iter().all(|value| value.is_finite()));
        prop_assert!(features.grams().all(|(_, count)| count > 0));
    }

    #[test]
    fn no_answer_panics_and_its_probability_is_one(
        question in ".{0,200}",
        answer in "([0-9 +*/=().,$-]|\\PC){0,200}",
        arguments in "([{}\\[\\]:,\"0-9a-z]){0,80}",
        extra in proptest::option::of(proptest::num::f64::ANY),
    ) {
        let arguments = [arguments.as_str()];
        let evidence = Evidence {
            question: &question,
            answer: &answer,
            arguments: &arguments,
            logprob_mean: extra,
            ..Evidence::default()
        };
        let found = signals(&evidence);
        prop_assert!(found.vector().iter().all(|value| value.is_finite()), "{found:?}");
        let verdict = score(&Policy::default(), None, StepClass::Chat, &found);
        prop_assert!((0.0..=1.0).contains(&verdict.p_ok));
    }

    #[test]
    fn no_bytes_panic_the_reading_of_weights(
        cut in 0usize..2000, byte in any::<u8>(), at in 0usize..2000,
    ) {
        let mut file = texts(7).to_string().into_bytes();
        let last = file.len() - 1;
        file[at.min(last)] = byte;
        file.truncate(cut.max(1));
        if let Ok(weights) = Weights::parse(&file) {
            prop_assert!(!weights.models().is_empty());
        }
    }

    #[test]
    fn any_step_gets_a_model_that_is_there_with_a_probability(
        text in ".{0,100}",
        tokens in any::<(u64, u64, u64)>(),
        current in proptest::option::of(0usize..5),
        flags in any::<(bool, bool, bool, bool)>(),
        budget_usd in proptest::option::of(proptest::num::f64::ANY),
        price in proptest::option::of(0.0f64..100.0),
        seed in any::<u64>(),
    ) {
        let weights = parsed(&texts(7));
        let model = |name, times: f64| Candidate {
            name,
            price: price.map(|usd| Prices {
                input_usd: usd * times, output_usd: usd, cached_usd: Some(usd / 4.0),
            }),
            context_tokens: Some(tokens.2),
            capable: flags.0,
            ready: flags.1,
            cached_tokens: tokens.1,
        };
        let candidates = [model("small", 1.0), model("large", 3.0)];
        let step = Step {
            class: StepClass::Answer,
            label: "",
            text: &text,
            input_tokens: tokens.0,
            output_tokens: tokens.1,
            current,
            in_tools: flags.2,
            boundary: flags.3,
            budget_usd,
            seed,
        };
        for weights in [None, Some(&weights)] {
            let decision = choose(&Policy::default(), weights, &candidates, &step);
            prop_assert!(decision.tier < 2);
            prop_assert!(decision.propensity > 0.0 && decision.propensity <= 1.0);
            prop_assert!(!decision.reason.is_empty());
        }
    }
}
