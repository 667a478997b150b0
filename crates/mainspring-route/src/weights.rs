//! What was learnt: how often which model is right, and on what that depends.
//!
//! Invariant: weights that are used outside what they were learnt from fall back to the averages of
//! the class, and from there to knowing nothing. `file.rs` reads them, `learnt.rs` holds the
//! regressions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::file::File;
use crate::learnt::{AnswerCheck, Line, TextModel};
use crate::{Candidate, Features, Signals, Step, StepClass};

/// Version of the file that this version reads and writes.
pub(crate) const VERSION: u32 = 1;

/// Why a weights file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WeightsError {
    /// It is not what the training writes, or was cut off or changed.
    #[error("the routing weights cannot be read: {0}")]
    Invalid(String),
    /// It is of another version.
    #[error("the routing weights have version {0}, this version reads {VERSION}")]
    Version(u64),
}

impl WeightsError {
    /// The code of the failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "route_invalid",
            Self::Version(_) => "route_version",
        }
    }

    /// How to cure it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        "mainspring route train writes the file anew"
    }
}

/// How often a model was right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prior {
    /// Mean score, 0 to 1.
    pub mean: f64,
    /// Outcomes behind it.
    pub count: f64,
}

impl Prior {
    /// Variance of the mean, with two invented outcomes so that few certain ones prove nothing.
    pub(crate) fn variance(self) -> f64 {
        let mean = (self.mean * self.count + 1.0) / (self.count + 2.0);
        mean * (1.0 - mean) / (self.count + 2.0)
    }

    /// The mean, drawn to another by as many outcomes as `strength`.
    fn drawn_to(self, other: f64, strength: f64) -> f64 {
        (self.mean * self.count + other * strength) / (self.count + strength).max(1e-9)
    }
}

/// What is known of a model and a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Probability of a right answer.
    pub p_ok: f64,
    /// How often the model was right at steps of the class, fit to be compared with other models.
    pub prior: Prior,
}

/// What was learnt about routing.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    id: String,
    models: Vec<String>,
    /// Outcomes by which an average is drawn to the one above it.
    strength: f64,
    /// Outcomes that a class needs before its texts are looked at.
    labels_min: f64,
    /// The average of each model over everything.
    all: Vec<f64>,
    fair: BTreeMap<StepClass, Vec<Prior>>,
    classes: BTreeMap<StepClass, Vec<Prior>>,
    labels: BTreeMap<String, Vec<Prior>>,
    text: Option<TextModel>,
    calibration: BTreeMap<StepClass, Line>,
    answer: Option<AnswerCheck>,
}

impl Weights {
    /// Reads a weights file.
    ///
    /// # Errors
    /// Text that is not such a file, one of another version, or values that do not fit together.
    pub fn parse(json: &[u8]) -> Result<Self, WeightsError> {
        let file = File::parse(json)?;
        let id = Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect();
        let width = file.models.len();
        Ok(Self {
            id,
            models: file.models,
            strength: file.strength,
            labels_min: file.labels_min,
            all: averages(&file.priors.all, file.strength),
            fair: file.priors.fair,
            classes: file.priors.classes,
            labels: file.priors.labels,
            text: file.text.map(|text| TextModel::new(text, width)),
            calibration: file.calibration,
            answer: file.answer.map(AnswerCheck::new),
        })
    }

    /// SHA-256 of the file, in hexadecimal.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The models that it knows, in the order of its columns.
    #[must_use]
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// What is known of each candidate at a step; None for a model or a class it knows nothing of.
    #[must_use]
    pub fn estimate(&self, candidates: &[Candidate<'_>], step: &Step<'_>) -> Vec<Option<Estimate>> {
        let column = |candidate: &Candidate<'_>| {
            self.models.iter().position(|model| model == candidate.name)
        };
        let columns: Vec<Option<usize>> = candidates.iter().map(column).collect();
        let Some(class) = self.classes.get(&step.class) else {
            return vec![None; candidates.len()];
        };
        let from_text = self.text_probabilities(class, &columns, step);
        let estimate = |column: usize| {
            let fair = self.fair.get(&step.class);
            let prior = fair.map_or(class[column], |fair| fair[column]);
            let p_ok = match &from_text {
                Some(found) => self.blended(step, found, column, self.average(step, column)),
                None => self.average(step, column),
            };
            Estimate { p_ok, prior }
        };
        columns.into_iter().map(|column| column.map(estimate)).collect()
    }

    /// Probability that an answer with these signals is right; None: not learnt.
    #[must_use]
    pub fn answer_ok(&self, class: StepClass, signals: &Signals) -> Option<f64> {
        self.answer.as_ref()?.p_ok(class, signals)
    }

    /// The average of the label, drawn to that of its class, drawn to that of all.
    fn average(&self, step: &Step<'_>, column: usize) -> f64 {
        let class = self.classes.get(&step.class).map_or(self.all[column], |class| {
            class[column].drawn_to(self.all[column], self.strength)
        });
        match self.labels.get(step.label) {
            Some(label) => label[column].drawn_to(class, self.strength),
            None => class,
        }
    }

    /// What the text says of each model; None where it must not be asked.
    fn text_probabilities(
        &self,
        class: &[Prior],
        columns: &[Option<usize>],
        step: &Step<'_>,
    ) -> Option<Vec<f64>> {
        let model = self.text.as_ref()?;
        let enough = columns.iter().flatten().all(|column| class[*column].count >= self.labels_min);
        // Weights that know tasks by their names say nothing of the texts of others.
        let known = self.labels.contains_key(step.label);
        let foreign = !known && !self.labels.is_empty();
        if !enough || foreign || step.text.is_empty() || columns.iter().all(Option::is_none) {
            return None;
        }
        let features = Features::of(step.text);
        (known || model.in_domain(&features)).then(|| model.probabilities(&features))
    }

    fn blended(&self, step: &Step<'_>, found: &[f64], column: usize, average: f64) -> f64 {
        let model = self.text.as_ref().map_or(0.0, TextModel::weight);
        let p_ok = (average + model * found[column]) / (1.0 + model);
        match self.calibration.get(&step.class) {
            Some(line) => line.probability(crate::signals::logit(p_ok)),
            None => p_ok,
        }
    }
}

/// Each model's average, drawn to that of all models together: of a model that was hardly tried,
/// nothing bad is thought.
fn averages(all: &[Prior], strength: f64) -> Vec<f64> {
    let count: f64 = all.iter().map(|prior| prior.count).sum();
    let right: f64 = all.iter().map(|prior| prior.mean * prior.count).sum();
    let pooled = right / count.max(1e-9);
    all.iter().map(|prior| prior.drawn_to(pooled, strength)).collect()
}
