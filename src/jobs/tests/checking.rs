//! Refusals before a job exists.

use super::*;
use crate::arithmetic::Pace;
use crate::jobs::service::JobRejection;
use crate::processor::Processor;

#[tokio::test]
async fn a_precision_that_is_too_slow_here_is_refused_beside_whatever_else_is_wrong() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut settings = settings(&folder.path().join("jobs"), &Arc::new(catalog(&folder)));
    settings.pace = |config| Some(Pace::new(config.model.precision, 0.4, Processor::here()));
    let bounds = Bounds { jobs_max: 9, events_retained_max: 100 };
    let jobs = Jobs::open(settings, bounds, Arc::new(())).await.expect("jobs");
    let fields = async |speed_min: f64| {
        let config_toml = format!(
            r#"
            seed = 1
            objective = "fine_tune"
            data = {{ root = "/nowhere", loader_threads = 1 }}
            model = {{ preset = "tiny", size_token = true, drop_path = 0.0, precision = "bf16", precision_speed_min = {speed_min} }}
            start = {{ from = "scratch" }}
            batch = {{ images = 4, images_per_identity = 2 }}
            optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 1e-4 }}
            schedule = {{ base_rate = 1e-3, warm_up_epochs = 1, epochs = 2 }}
            checkpoint = {{ epochs = 1, keep = 1 }}
            "#
        );
        let order = JobSpec { config_toml, ..JobSpec::default() };
        match jobs.check("default".into(), order).await {
            Err(JobRejection::Invalid(found)) => found.into_iter().map(|violation| violation.field).collect(),
            other => panic!("{other:?}"),
        }
    };
    let found: Vec<String> = fields(0.5).await;
    assert_eq!(found, ["data.root", "model.precision"]);
    assert_eq!(fields(0.3).await, ["data.root"]);
}
