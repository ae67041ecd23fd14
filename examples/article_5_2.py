import torch
import torch.nn as nn
from transformers import GPT2Model, GPT2Tokenizer
from wafergpt import WSE2

class GPT(nn.Module):
    def __init__(self):
        super(GPT, self).__init__()
        self.tokenizer = GPT2Tokenizer.from_pretrained('gpt2')
        self.model = GPT2Model.from_pretrained('gpt2')
        self.wse2 = WSE2()

    def forward(self, input_ids, attention_mask):
        self.wse2.start()
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        self.wse2.stop()
        return outputs.last_hidden_state

model = GPT()
input_text = "Hello, how are you?"
input_ids = torch.tensor([model.tokenizer.encode(input_text)])
attention_mask = torch.ones_like(input_ids)
outputs = model(input_ids, attention_mask)
print(outputs.shape)
