//! What a decision costs: `cargo run --release -p mainspring-route --example decision_cost`.
//!
//! Prints one JSON object: whole decisions at steps of about 2 KB, in microseconds, with weights of
//! full size and without; and the share of them that is looking at the text.

#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "measures, with a clock")]
#![expect(clippy::disallowed_macros, reason = "a program that prints")]

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use mainspring_route::{Candidate, Features, Policy, Prices, Step, StepClass, Weights, choose};
use serde_json::{Value, json};

const ROUNDS: usize = 20_000;
const TEXTS: usize = 64;
const TEXT_BYTES: usize = 2048;

fn main() -> Result<(), Box<dyn Error>> {
    let weights = Weights::parse(full_weights().to_string().as_bytes())?;
    let texts: Vec<String> = (0..TEXTS as u64).map(text).collect();
    let report = json!({
        "work": "route",
        "text_bytes": TEXT_BYTES,
        "decisions": ROUNDS,
        "learnt": decisions(Some(&weights), &texts),
        "untrained": decisions(None, &texts),
        "features": timed(&texts, |text, _| {
            black_box(Features::of(text));
        }),
    });
    println!("{report}");
    Ok(())
}

fn decisions(weights: Option<&Weights>, texts: &[String]) -> Value {
    let price = |input_usd, output_usd| Some(Prices { input_usd, output_usd, cached_usd: None });
    let model = |name, price| Candidate {
        name,
        price,
        context_tokens: Some(128_000),
        capable: true,
        ready: true,
        cached_tokens: 0,
    };
    let candidates = [model("small", price(0.15, 0.6)), model("large", price(3.0, 15.0))];
    let policy = Policy::default();
    timed(texts, |text, seed| {
        let step = Step {
            class: StepClass::Answer,
            text,
            input_tokens: 600,
            output_tokens: 200,
            budget_usd: Some(1.0),
            seed,
            ..Step::default()
        };
        let decision = black_box(choose(&policy, weights, &candidates, &step));
        assert!(
            weights.is_none() || decision.candidates[0].p_ok.is_some(),
            "weights were not used"
        );
    })
}

fn timed(texts: &[String], mut work: impl FnMut(&str, u64)) -> Value {
    let mut times: Vec<f64> = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + ROUNDS / 10 {
        let begun = Instant::now();
        work(&texts[round % texts.len()], round as u64);
        let took = begun.elapsed().as_nanos() as f64 / 1e3;
        // The first tenth warms up.
        if round >= ROUNDS / 10 {
            times.push(took);
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    json!({
        "mean_us": times.iter().sum::<f64>() / times.len() as f64,
        "p50_us": at(0.5),
        "p99_us": at(0.99),
    })
}

/// A text of words that are spread like those of a language: few are frequent, most are rare.
fn text(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut text = String::new();
    while text.len() < TEXT_BYTES {
        let rank = (20_000f64.powf(next()) * 7919.0) as u64;
        let mut rank = rank.wrapping_mul(2_654_435_761) % 100_000_007;
        while rank > 0 {
            text.push(char::from(b'a' + (rank % 26) as u8));
            rank /= 60;
        }
        text.push_str(if next() < 0.08 { ".\nThe " } else { " " });
    }
    text.truncate(TEXT_BYTES);
    text
}

/// Weights in which every bucket is known, for two models.
fn full_weights() -> Value {
    let index: Vec<u32> = (0..65_536).collect();
    let row: Vec<f64> = index.iter().map(|bucket| f64::from(bucket % 13) / 100.0).collect();
    let idf: Vec<f64> = index.iter().map(|bucket| 1.0 + f64::from(bucket % 7)).collect();
    let prior = json!({"mean": 0.7, "count": 1000.0});
    let priors = json!([prior, prior]);
    let surface = vec![0.1; 10];
    let signature: Vec<u32> = (0..32).collect();
    json!({
        "format": "mainspring-route-weights",
        "version": 1,
        "models": ["small", "large"],
        "strength": 12.0,
        "labels_min": 100.0,
        "priors": {"all": priors, "classes": {"answer": priors}, "labels": {}, "fair": {"answer": priors}},
        "text": {
            "grams_weight": 1.0,
            "surface_weight": 0.5,
            "grams": {"index": index, "idf": idf, "weights": [row, row], "intercepts": [0.0, 0.0]},
            "surface": {
                "mean": surface, "scale": vec![1.0; 10],
                "weights": [surface, surface], "intercepts": [0.0, 0.0],
            },
            "domain": {
                "surface_max": 100.0, "signature": signature, "share": vec![0.5; 32],
                "fit_min": -100.0,
            },
        },
        "calibration": {"answer": {"slope": 1.0, "intercept": 0.0}},
    })
}
