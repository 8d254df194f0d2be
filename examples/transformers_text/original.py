"""A text classifier of transformers in a loop of one's own under DDP: all of it trains from the first step on."""

import random

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

EPOCHS, BATCH = 4, 16
GOOD, BAD = ("fine", "bright", "warm", "kind"), ("dull", "cold", "slow", "grim")
NEUTRAL = ("the", "film", "was", "a", "very", "and", "its", "end")
WORDS = ("[PAD]", "[CLS]", *NEUTRAL, *GOOD, *BAD)


def reviews(count: int) -> TensorDataset:
    """Made-up reviews as word numbers (N, 12), and whether each praises or blames (N,)."""
    chance = random.Random(0)
    labels = [chance.randrange(2) for _ in range(count)]
    texts = [chance.choices(NEUTRAL, k=8) + chance.choices(GOOD if label else BAD, k=3) for label in labels]
    for text in texts:
        chance.shuffle(text)
    return TensorDataset(
        torch.tensor([[WORDS.index(word) for word in ("[CLS]", *text)] for text in texts]), torch.tensor(labels)
    )


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    dataset = reviews(512)
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler)
    # small, with random weights; pretrained ones: BertForSequenceClassification.from_pretrained("bert-base-uncased")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    task = BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), num_labels=2, **sizes))
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    model = DistributedDataParallel(task)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        right = torch.zeros(1)
        for words, labels in loader:
            found = model(input_ids=words, labels=labels)
            found.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            right += (found.logits.argmax(dim=1) == labels).sum()
        dist.all_reduce(right)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: accuracy {right.item() / len(dataset):.2f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
