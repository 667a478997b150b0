//! Models, steps and weights files to test with.

use mainspring_route::{Candidate, Prices, Step, StepClass, Weights};
use serde_json::{Value, json};

pub(crate) fn priced(name: &str, input_usd: f64, output_usd: f64) -> Candidate<'_> {
    let price = Prices { input_usd, output_usd, cached_usd: Some(input_usd / 10.0) };
    Candidate { price: Some(price), ..free(name) }
}

pub(crate) fn free(name: &str) -> Candidate<'_> {
    Candidate { name, capable: true, ready: true, ..Candidate::default() }
}

pub(crate) fn small_and_large() -> [Candidate<'static>; 2] {
    [priced("small", 0.15, 0.6), priced("large", 3.0, 15.0)]
}

pub(crate) fn step() -> Step<'static> {
    Step {
        class: StepClass::Answer,
        text: "How many apples are left?",
        input_tokens: 1_000,
        output_tokens: 200,
        ..Step::default()
    }
}

pub(crate) fn prior(mean: f64, count: f64) -> Value {
    json!({"mean": mean, "count": count})
}

/// Weights that know how often small and large are right at answers, and nothing of texts.
pub(crate) fn averages(small: Value, large: Value) -> Value {
    let both = json!([small, large]);
    json!({
        "format": "mainspring-route-weights",
        "version": 1,
        "created": "2026-11-25",
        "models": ["small", "large"],
        "strength": 0.0,
        "labels_min": 100.0,
        "priors": {
            "all": both, "classes": {"answer": both}, "labels": {}, "fair": {"answer": both},
        },
        "text": null,
        "calibration": {},
        "answer": null,
    })
}

/// Weights whose texts decide: of `bucket`, small is hardly ever right and large nearly always.
pub(crate) fn texts(bucket: u16) -> Value {
    let mut file = averages(prior(0.6, 500.0), prior(0.7, 500.0));
    let zeros = vec![0.0; 10];
    file["text"] = json!({
        "grams_weight": 9.0,
        "surface_weight": 0.0,
        "grams": {
            "index": [bucket], "idf": [1.0],
            "weights": [[-4.0], [4.0]], "intercepts": [2.0, 2.0],
        },
        "surface": {
            "mean": zeros, "scale": vec![1.0; 10],
            "weights": [zeros, zeros], "intercepts": [0.0, 0.0],
        },
        "domain": {"surface_max": 50.0, "signature": [], "share": [], "fit_min": -1.0},
    });
    file
}

pub(crate) fn parsed(file: &Value) -> Weights {
    Weights::parse(file.to_string().as_bytes()).expect("the weights are good")
}
