//! The weights file: JSON, versioned, and checked so that what is read can be used without checks.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::features::SURFACE_COUNT;
use crate::learnt::{AnswerFile, Line, TextFile};
use crate::signals::SIGNAL_COUNT;
use crate::weights::{Prior, VERSION};
use crate::{StepClass, WeightsError};

const FORMAT: &str = "mainspring-route-weights";
/// Models in one file.
const MODELS_MAX: usize = 16;
/// Bytes of one file.
const FILE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Greatest absolute value of any number: further out there is no learning, only mistakes.
const VALUE_MAX: f64 = 1e6;

#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

/// What the file holds. Where it comes from (date, data, metrics) is for people, and not read.
#[derive(Deserialize)]
pub(crate) struct File {
    pub(crate) models: Vec<String>,
    pub(crate) strength: f64,
    pub(crate) labels_min: f64,
    pub(crate) priors: Priors,
    #[serde(default)]
    pub(crate) text: Option<TextFile>,
    #[serde(default)]
    pub(crate) calibration: BTreeMap<StepClass, Line>,
    #[serde(default)]
    pub(crate) answer: Option<AnswerFile>,
}

/// Averages: of all outcomes, of each class, of each finer label; one for each model.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Priors {
    pub(crate) all: Vec<Prior>,
    pub(crate) classes: BTreeMap<StepClass, Vec<Prior>>,
    pub(crate) labels: BTreeMap<String, Vec<Prior>>,
    /// Of each class, weighted so that models can be compared.
    pub(crate) fair: BTreeMap<StepClass, Vec<Prior>>,
}

impl File {
    /// Reads and checks a file.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, WeightsError> {
        if json.len() > FILE_BYTES_MAX {
            let text = format!("{} bytes, at most {FILE_BYTES_MAX} are allowed", json.len());
            return Err(WeightsError::Invalid(text));
        }
        let unreadable = |error: serde_json::Error| WeightsError::Invalid(error.to_string());
        let head: Head = serde_json::from_slice(json).map_err(unreadable)?;
        if head.format != FORMAT {
            let text = format!("its format is {:?}, allowed is {FORMAT:?}", head.format);
            return Err(WeightsError::Invalid(text));
        }
        if head.version != u64::from(VERSION) {
            return Err(WeightsError::Version(head.version));
        }
        let file: Self = serde_json::from_slice(json).map_err(unreadable)?;
        file.check().map_err(WeightsError::Invalid)?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        let width = self.models.len();
        let distinct: std::collections::BTreeSet<&String> = self.models.iter().collect();
        if width == 0 || width > MODELS_MAX || distinct.len() != width {
            return Err(format!("models: {width}, allowed are 1 to {MODELS_MAX} different ones"));
        }
        bounded("strength", [self.strength, self.labels_min])?;
        if self.strength < 0.0 {
            return Err("strength is negative".to_owned());
        }
        self.check_priors(width)?;
        let lines = self.calibration.values();
        bounded("calibration", lines.flat_map(|line| [line.slope, line.intercept]))?;
        self.text.as_ref().map_or(Ok(()), |text| check_text(text, width))?;
        self.answer.as_ref().map_or(Ok(()), check_answer)
    }

    fn check_priors(&self, width: usize) -> Result<(), String> {
        let rows = std::iter::once(&self.priors.all)
            .chain(self.priors.classes.values())
            .chain(self.priors.labels.values())
            .chain(self.priors.fair.values());
        for row in rows {
            length("priors", row.len(), width)?;
            for prior in row {
                if !(0.0..=1.0).contains(&prior.mean) || !(0.0..=1e12).contains(&prior.count) {
                    let Prior { mean, count } = prior;
                    return Err(format!("a prior of mean {mean} and count {count}"));
                }
            }
        }
        Ok(())
    }
}

fn check_text(text: &TextFile, width: usize) -> Result<(), String> {
    let (grams, surface, domain) = (&text.grams, &text.surface, &text.domain);
    length("grams.idf", grams.idf.len(), grams.index.len())?;
    if !grams.index.is_sorted_by(|one, next| one < next) {
        return Err("grams.index is not ascending".to_owned());
    }
    length("grams.weights", grams.weights.len(), width)?;
    length("grams.intercepts", grams.intercepts.len(), width)?;
    for row in &grams.weights {
        length("grams.weights", row.len(), grams.index.len())?;
        bounded("grams.weights", row.iter().map(|value| f64::from(*value)))?;
    }
    bounded("grams.idf", grams.idf.iter().map(|value| f64::from(*value)))?;
    bounded("grams.intercepts", grams.intercepts.iter().copied())?;
    scaled("surface", &surface.mean, &surface.scale, SURFACE_COUNT)?;
    length("surface.weights", surface.weights.len(), width)?;
    length("surface.intercepts", surface.intercepts.len(), width)?;
    for row in &surface.weights {
        length("surface.weights", row.len(), SURFACE_COUNT)?;
        bounded("surface.weights", row.iter().copied())?;
    }
    bounded("surface.intercepts", surface.intercepts.iter().copied())?;
    length("domain.share", domain.share.len(), domain.signature.len())?;
    if domain.share.iter().any(|share| !(0.0..=1.0).contains(share)) {
        return Err("domain.share has a value outside 0 to 1".to_owned());
    }
    bounded("domain", [domain.surface_max, domain.fit_min])?;
    let weights = [text.grams_weight, text.surface_weight];
    bounded("text", weights)?;
    if weights.iter().any(|weight| *weight < 0.0) {
        return Err("text has a negative weight".to_owned());
    }
    Ok(())
}

fn check_answer(answer: &AnswerFile) -> Result<(), String> {
    scaled("answer", &answer.mean, &answer.scale, SIGNAL_COUNT)?;
    length("answer.weights", answer.weights.len(), SIGNAL_COUNT)?;
    let lines = answer.classes.values().flat_map(|line| [line.slope, line.intercept]);
    bounded("answer", answer.weights.iter().copied().chain([answer.intercept]).chain(lines))
}

fn scaled(what: &str, mean: &[f64], scale: &[f64], wanted: usize) -> Result<(), String> {
    length(what, mean.len(), wanted)?;
    length(what, scale.len(), wanted)?;
    bounded(what, mean.iter().chain(scale).copied())?;
    if scale.iter().any(|scale| *scale < 1e-9) {
        return Err(format!("{what} has a scale of 0 or less"));
    }
    Ok(())
}

fn length(what: &str, seen: usize, wanted: usize) -> Result<(), String> {
    if seen == wanted {
        return Ok(());
    }
    Err(format!("{what} has {seen} values, {wanted} are needed"))
}

fn bounded(what: &str, values: impl IntoIterator<Item = f64>) -> Result<(), String> {
    // Not a number is in no range.
    match values.into_iter().find(|value| !(-VALUE_MAX..=VALUE_MAX).contains(value)) {
        Some(value) => Err(format!("{what} has the value {value}, allowed are -1e6 to 1e6")),
        None => Ok(()),
    }
}
