//! The routing policy for Python: features for the training, and the decisions themselves.
//!
//! Matrices go over as bytes of little-endian numbers, row after row; everything else as JSON.

use mainspring_route::{
    Candidate, Decision, Evidence, Features, Policy, Prices, SIGNAL_NAMES, SURFACE_NAMES, Step,
    StepClass, Verdict, Weights, choose, score, signals,
};
use mainspring_session::{ErrorCode, Failure};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::convert;

/// Names of the surface features, of the signals of an answer, and of the step classes.
#[pyfunction]
pub(crate) fn route_names() -> (Vec<&'static str>, Vec<&'static str>, Vec<&'static str>) {
    let classes = StepClass::ALL.map(StepClass::as_str);
    (SURFACE_NAMES.to_vec(), SIGNAL_NAMES.to_vec(), classes.to_vec())
}

/// What texts look like: surface (f32, a row a text), grams of each text (u32), buckets (u16) and
/// counts (u32) of all grams in the order of the texts.
#[pyfunction]
pub(crate) fn route_features(py: Python<'_>, texts: Vec<String>) -> PyResult<Bound<'_, PyTuple>> {
    let parts: [Vec<u8>; 4] = py.detach(|| {
        let mut parts: [Vec<u8>; 4] = Default::default();
        for text in &texts {
            let features = Features::of(text);
            let surface = features.surface().iter().flat_map(|value| value.to_le_bytes());
            parts[0].extend(surface);
            let mut count = 0u32;
            for (bucket, times) in features.grams() {
                parts[2].extend(bucket.to_le_bytes());
                parts[3].extend(times.to_le_bytes());
                count += 1;
            }
            parts[1].extend(count.to_le_bytes());
        }
        parts
    });
    PyTuple::new(py, parts.iter().map(|part| PyBytes::new(py, part)))
}

/// What the checks of answers find: f64, a row an answer, columns as in `route_names`.
#[pyfunction]
pub(crate) fn route_signals<'py>(
    py: Python<'py>,
    evidence: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    let found = py.detach(|| {
        let all: Vec<OwnedEvidence> = json(evidence, "the evidence")?;
        let rows = all.iter().flat_map(|each| each.with(signals).vector());
        Ok(rows.flat_map(f64::to_le_bytes).collect::<Vec<u8>>())
    });
    found.map(|bytes| PyBytes::new(py, &bytes)).map_err(convert::raise)
}

/// Learnt weights.
#[pyclass(frozen, module = "mainspring._native")]
pub(crate) struct RouteWeights(Weights);

#[pymethods]
impl RouteWeights {
    #[new]
    fn new(file: &[u8]) -> PyResult<Self> {
        Weights::parse(file).map(Self).map_err(|error| {
            let code = ErrorCode::named(error.code());
            convert::raise(Failure::new(code, error.to_string()).with_hint(error.hint()))
        })
    }

    /// SHA-256 of the file.
    #[getter]
    fn id(&self) -> &str {
        self.0.id()
    }

    /// The models that it knows.
    #[getter]
    fn models(&self) -> Vec<String> {
        self.0.models().to_vec()
    }
}

/// Decisions: a JSON list of steps with their candidates becomes a JSON list of decisions.
#[pyfunction]
pub(crate) fn route_choose<'py>(
    py: Python<'py>,
    policy: &[u8],
    weights: Option<&RouteWeights>,
    questions: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    let answer = py.detach(|| {
        let policy = checked(policy)?;
        let questions: Vec<OwnedQuestion> = json(questions, "the steps")?;
        let decide = |question: &OwnedQuestion| question.decide(&policy, weights.map(|all| &all.0));
        to_json(&questions.iter().map(decide).collect::<Vec<Decision>>())
    });
    answer.map(|bytes| PyBytes::new(py, &bytes)).map_err(convert::raise)
}

/// Verdicts: a JSON list of evidence becomes a JSON list of verdicts.
#[pyfunction]
pub(crate) fn route_score<'py>(
    py: Python<'py>,
    policy: &[u8],
    weights: Option<&RouteWeights>,
    evidence: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    let answer = py.detach(|| {
        let policy = checked(policy)?;
        let all: Vec<OwnedEvidence> = json(evidence, "the evidence")?;
        let judge = |each: &OwnedEvidence| {
            let found = each.with(signals);
            score(&policy, weights.map(|all| &all.0), each.class, &found)
        };
        to_json(&all.iter().map(judge).collect::<Vec<Verdict>>())
    });
    answer.map(|bytes| PyBytes::new(py, &bytes)).map_err(convert::raise)
}

fn checked(policy: &[u8]) -> Result<Policy, Failure> {
    let policy: Policy = json(policy, "the routing policy")?;
    policy.check().map_err(|message| Failure::new(ErrorCode::ROUTE_INVALID, message))?;
    Ok(policy)
}

fn json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::new(ErrorCode::ROUTE_INVALID, format!("{what} cannot be read: {error}"))
    })
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| {
        Failure::new(ErrorCode::ROUTE_INVALID, format!("a decision cannot be written: {error}"))
    })
}

/// `Evidence` that owns its texts.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct OwnedEvidence {
    class: StepClass,
    question: String,
    context: Vec<String>,
    answer: String,
    arguments: Vec<String>,
    cut_off: bool,
    refused: bool,
    logprob_mean: Option<f64>,
    agreement: Option<f64>,
    judge: Option<f64>,
    p_before: Option<f64>,
}

impl OwnedEvidence {
    fn with<T>(&self, use_it: impl FnOnce(&Evidence<'_>) -> T) -> T {
        let context: Vec<&str> = self.context.iter().map(String::as_str).collect();
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        use_it(&Evidence {
            class: self.class,
            question: &self.question,
            context: &context,
            answer: &self.answer,
            arguments: &arguments,
            cut_off: self.cut_off,
            refused: self.refused,
            logprob_mean: self.logprob_mean,
            agreement: self.agreement,
            judge: self.judge,
            p_before: self.p_before,
        })
    }
}

/// A step with its candidates.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedQuestion {
    step: OwnedStep,
    candidates: Vec<OwnedCandidate>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct OwnedStep {
    class: StepClass,
    label: String,
    text: String,
    input_tokens: u64,
    output_tokens: u64,
    current: Option<usize>,
    in_tools: bool,
    boundary: bool,
    budget_usd: Option<f64>,
    seed: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedCandidate {
    name: String,
    #[serde(default)]
    price: Option<Prices>,
    #[serde(default)]
    context_tokens: Option<u64>,
    #[serde(default = "yes")]
    capable: bool,
    #[serde(default = "yes")]
    ready: bool,
    #[serde(default)]
    cached_tokens: u64,
}

fn yes() -> bool {
    true
}

impl OwnedQuestion {
    fn decide(&self, policy: &Policy, weights: Option<&Weights>) -> Decision {
        let candidates: Vec<Candidate<'_>> = self
            .candidates
            .iter()
            .map(|each| Candidate {
                name: &each.name,
                price: each.price,
                context_tokens: each.context_tokens,
                capable: each.capable,
                ready: each.ready,
                cached_tokens: each.cached_tokens,
            })
            .collect();
        let step = &self.step;
        let step = Step {
            class: step.class,
            label: &step.label,
            text: &step.text,
            input_tokens: step.input_tokens,
            output_tokens: step.output_tokens,
            // A position of a longer route says nothing about this one.
            current: step.current.filter(|current| *current < candidates.len()),
            in_tools: step.in_tools,
            boundary: step.boundary,
            budget_usd: step.budget_usd,
            seed: step.seed,
        };
        choose(policy, weights, &candidates, &step)
    }
}
