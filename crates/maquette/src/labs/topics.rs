//! The table of the sixty questions. A topic joins the handbook when its lab stands here.

use super::{Lab, Topic};

#[path = "../../../../handbook/45-activations/lab.rs"]
mod activations;
#[path = "../../../../handbook/18-attention/lab.rs"]
mod attention;
#[path = "../../../../handbook/35-attention-in-generation/lab.rs"]
mod attention_in_generation;
#[path = "../../../../handbook/40-autoregressive/lab.rs"]
mod autoregressive;
#[path = "../../../../handbook/25-batch-normalisation/lab.rs"]
mod batch_normalisation;
#[path = "../../../../handbook/34-bert/lab.rs"]
mod bert;
#[path = "../../../../handbook/33-conditional-gan/lab.rs"]
mod conditional_gan;
#[path = "../../../../handbook/17-diffusion/lab.rs"]
mod diffusion;
#[path = "../../../../handbook/41-eager-graph/lab.rs"]
mod eager_graph;
#[path = "../../../../handbook/16-gan-difficulty/lab.rs"]
mod gan_difficulty;
#[path = "../../../../handbook/30-gan-losses/lab.rs"]
mod gan_losses;
#[path = "../../../../handbook/43-gan-metrics/lab.rs"]
mod gan_metrics;
#[path = "../../../../handbook/01-generative-discriminative/lab.rs"]
mod generative_discriminative;
#[path = "../../../../handbook/20-generator-discriminator/lab.rs"]
mod generator_discriminator;
#[path = "../../../../handbook/31-gpt-rnn/lab.rs"]
mod gpt_rnn;
#[path = "../../../../handbook/48-gradient-clipping/lab.rs"]
mod gradient_clipping;
#[path = "../../../../handbook/50-in-context-learning/lab.rs"]
mod in_context_learning;
#[path = "../../../../handbook/04-kl-divergence/lab.rs"]
mod kl_divergence;
#[path = "../../../../handbook/49-l1-l2/lab.rs"]
mod l1_l2;
#[path = "../../../../handbook/24-large-datasets/lab.rs"]
mod large_datasets;
#[path = "../../../../handbook/27-latent-space/lab.rs"]
mod latent_space;
#[path = "../../../../handbook/38-long-range/lab.rs"]
mod long_range;
#[path = "../../../../handbook/32-mode-collapse/lab.rs"]
mod mode_collapse;
#[path = "../../../../handbook/54-multimodal/lab.rs"]
mod multimodal;
#[path = "../../../../handbook/46-nash-equilibrium/lab.rs"]
mod nash_equilibrium;
#[path = "../../../../handbook/10-noise/lab.rs"]
mod noise;
#[path = "../../../../handbook/15-normalisation/lab.rs"]
mod normalisation;
#[path = "../../../../handbook/47-optimisers/lab.rs"]
mod optimisers;
#[path = "../../../../handbook/07-output-quality/lab.rs"]
mod output_quality;
#[path = "../../../../handbook/21-overfitting/lab.rs"]
mod overfitting;
#[path = "../../../../handbook/36-pretrained-models/lab.rs"]
mod pretrained_models;
#[path = "../../../../handbook/14-prompts/lab.rs"]
mod prompts;
#[path = "../../../../handbook/11-sampling/lab.rs"]
mod sampling;
#[path = "../../../../handbook/22-softmax/lab.rs"]
mod softmax;
#[path = "../../../../handbook/29-stabilising-gans/lab.rs"]
mod stabilising_gans;
#[path = "../../../../handbook/12-supervised-unsupervised/lab.rs"]
mod supervised_unsupervised;
#[path = "../../../../handbook/09-tokenization/lab.rs"]
mod tokenization;
#[path = "../../../../handbook/44-transformer/lab.rs"]
mod transformer;
#[path = "../../../../handbook/26-transformer-rnn-cnn/lab.rs"]
mod transformer_rnn_cnn;
#[path = "../../../../handbook/19-vae/lab.rs"]
mod vae;
#[path = "../../../../handbook/37-vanishing-gradients/lab.rs"]
mod vanishing_gradients;

const fn topic(number: u8, slug: &'static str, title: &'static str) -> Topic {
    Topic {
        number,
        slug,
        title,
        lab: None,
    }
}

impl Topic {
    // All labs have a quick form so far; one that has none sets `ci` to false itself.
    const fn lab(
        mut self,
        run: fn(&super::LabContext<'_>) -> Result<super::Outcome, super::LabError>,
    ) -> Self {
        self.lab = Some(Lab { ci: true, run });
        self
    }
}

/// The sixty questions in their order.
pub static TOPICS: [Topic; 60] = [
    topic(
        1,
        "generative-discriminative",
        "Generative and discriminative models",
    )
    .lab(generative_discriminative::run),
    topic(
        2,
        "model-kinds",
        "The well-known kinds of model and their uses",
    ),
    topic(3, "ethics", "Ethics of generative models"),
    topic(4, "kl-divergence", "KL divergence").lab(kl_divergence::run),
    topic(5, "reducing-bias", "Reducing bias"),
    topic(6, "zero-few-shot", "Zero-shot and few-shot learning"),
    topic(7, "output-quality", "Judging the quality of output").lab(output_quality::run),
    topic(8, "style-transfer", "Style transfer"),
    topic(9, "tokenization", "Tokenization").lab(tokenization::run),
    topic(10, "noise", "Noise").lab(noise::run),
    topic(11, "sampling", "Sampling strategies").lab(sampling::run),
    topic(
        12,
        "supervised-unsupervised",
        "Supervised and unsupervised generation",
    )
    .lab(supervised_unsupervised::run),
    topic(13, "sensitive-domains", "Risk in sensitive domains"),
    topic(14, "prompts", "Open and closed prompts").lab(prompts::run),
    topic(15, "normalisation", "Normalisation and regularisation").lab(normalisation::run),
    topic(16, "gan-difficulty", "Why GANs are hard to train").lab(gan_difficulty::run),
    topic(17, "diffusion", "Diffusion models").lab(diffusion::run),
    topic(18, "attention", "Attention").lab(attention::run),
    topic(19, "vae", "Variational autoencoders").lab(vae::run),
    topic(20, "generator-discriminator", "Generator and discriminator")
        .lab(generator_discriminator::run),
    topic(21, "overfitting", "Overfitting").lab(overfitting::run),
    topic(22, "softmax", "Softmax").lab(softmax::run),
    topic(23, "reinforcement-learning", "Reinforcement learning"),
    topic(24, "large-datasets", "Large data sets").lab(large_datasets::run),
    topic(25, "batch-normalisation", "Batch normalisation").lab(batch_normalisation::run),
    topic(26, "transformer-rnn-cnn", "Transformer, RNN and CNN").lab(transformer_rnn_cnn::run),
    topic(27, "latent-space", "Latent space").lab(latent_space::run),
    topic(28, "adversarial-attacks", "Adversarial attacks"),
    topic(29, "stabilising-gans", "Stabilising GANs").lab(stabilising_gans::run),
    topic(30, "gan-losses", "GAN losses").lab(gan_losses::run),
    topic(31, "gpt-rnn", "GPT and RNN").lab(gpt_rnn::run),
    topic(32, "mode-collapse", "Mode collapse").lab(mode_collapse::run),
    topic(33, "conditional-gan", "Conditional GANs").lab(conditional_gan::run),
    topic(34, "bert", "BERT").lab(bert::run),
    topic(
        35,
        "attention-in-generation",
        "Attention in text generation",
    )
    .lab(attention_in_generation::run),
    topic(36, "pretrained-models", "Using a pre-trained model").lab(pretrained_models::run),
    topic(37, "vanishing-gradients", "Vanishing gradients").lab(vanishing_gradients::run),
    topic(38, "long-range", "Long-range dependence").lab(long_range::run),
    topic(39, "anomaly-detection", "Anomaly detection"),
    topic(40, "autoregressive", "Autoregressive models and the others").lab(autoregressive::run),
    topic(41, "eager-graph", "Eager and graph execution").lab(eager_graph::run),
    topic(42, "deep-belief-network", "Deep belief networks"),
    topic(43, "gan-metrics", "Metrics for GANs").lab(gan_metrics::run),
    topic(44, "transformer", "The transformer").lab(transformer::run),
    topic(45, "activations", "Activation functions").lab(activations::run),
    topic(46, "nash-equilibrium", "Nash equilibrium").lab(nash_equilibrium::run),
    topic(47, "optimisers", "Optimisers").lab(optimisers::run),
    topic(48, "gradient-clipping", "Gradient clipping").lab(gradient_clipping::run),
    topic(49, "l1-l2", "L1 and L2 penalties").lab(l1_l2::run),
    topic(50, "in-context-learning", "In-context learning").lab(in_context_learning::run),
    topic(51, "creativity", "Human creativity"),
    topic(52, "rag", "Retrieval-augmented generation"),
    topic(53, "vector-databases", "Vector databases"),
    topic(54, "multimodal", "Efficient multimodal models").lab(multimodal::run),
    topic(
        55,
        "llm-frameworks",
        "Application frameworks for language models",
    ),
    topic(56, "diffusion-gan", "Diffusion and GAN"),
    topic(57, "energy-based", "Energy-based models"),
    topic(58, "curriculum", "Curriculum learning"),
    topic(59, "edge-devices", "Edge devices"),
    topic(60, "lora", "LoRA"),
];

/// The topic with this number or short name.
pub fn find(name: &str) -> Option<&'static Topic> {
    let number = name.parse::<u8>().ok();
    TOPICS
        .iter()
        .find(|topic| Some(topic.number) == number || topic.slug == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_topics_in_order_with_distinct_names() {
        for (i, topic) in TOPICS.iter().enumerate() {
            assert_eq!(topic.number as usize, i + 1);
            assert_eq!(find(topic.slug).map(|t| t.number), Some(topic.number));
        }
    }

    #[test]
    fn found_by_number_and_by_name_or_not_at_all() {
        assert_eq!(find("4").map(|t| t.slug), Some("kl-divergence"));
        assert_eq!(find("kl-divergence").map(|t| t.number), Some(4));
        assert!(find("0").is_none() && find("61").is_none() && find("magic").is_none());
    }
}
